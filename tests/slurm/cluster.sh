#!/usr/bin/env bash
# A SLURM cluster on this machine, for the tests: one CPU node and five nodes of two GPUs that are copies of /dev/null.
#
#   cluster.sh start STATE [--no-accounting]   start what does not run yet; prints the environment to use it with
#   cluster.sh stop STATE                      end what was started there, and nothing else
#
# STATE is a folder of its own, which holds configuration, spool, logs and pid files. Needs root, and on Debian
#   apt-get install -y --no-install-recommends slurm-wlm slurmdbd munge mariadb-server
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
action=$1 state=$2 accounting=${3:-}
host=$(hostname -s)
port=${LVIS_RCNN_TEST_SLURM_PORT:-16900}
nodes="cpu1 gpu1 gpu2 gpu3 gpu4 gpu5"
export SLURM_CONF=$state/etc/slurm.conf

runs() { # PIDFILE NAME: whether the process of a pid file is the program it should be
    local pid
    pid=$(cat "$1" 2>/dev/null) && [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ]
}

wait_for() { # SECONDS COMMAND…
    local end=$((SECONDS + $1)); shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || { echo "error: waited too long for: $*" >&2; return 1; }
        sleep 0.1
    done
}

has_ended() { # PID: it is gone, or waits for a parent that does not ask for it
    [ ! -e "/proc/$1" ] || grep -q '^State:.*Z' "/proc/$1/status"
}

stop() { # PIDFILE NAME
    runs "$1" "$2" || return 0
    local pid; pid=$(cat "$1")
    kill "$pid"
    wait_for 15 has_ended "$pid" || kill -9 "$pid"
}

write_configuration() {
    mkdir -p "$state"/{etc,run,log,ctld,db,dev}
    for node in $nodes; do mkdir -p "$state/spool/$node"; done
    # Other users' commands must reach configuration and socket.
    chmod 755 "$state" "$state"/{etc,run,dev}
    [ -f "$state/etc/munge.key" ] || (umask 077; head -c 128 /dev/urandom > "$state/etc/munge.key")
    # Without a device file SLURM counts no GPU; the same two serve all nodes.
    for number in 0 1; do [ -e "$state/dev/nvidia$number" ] || mknod -m 666 "$state/dev/nvidia$number" c 1 3; done
    local accounts="AccountingStorageType=accounting_storage/none"
    if [ "$accounting" != --no-accounting ]; then
        accounts="AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=127.0.0.1"
        accounts+="\nAccountingStoragePort=$((port + 19))\nAccountingStoragePass=$state/run/munge.socket"
        accounts+="\nAccountingStorageTRES=gres/gpu\nAccountingStorageEnforce=associations,limits,qos"
    fi
    local words=(-e "s|@STATE@|$state|g; s|@HOST@|$host|g; s|@CTLD@|$((port + 17))|; s|@ACCOUNTING@|$accounts|")
    for number in 1 2 3 4 5 6; do words+=(-e "s|@P$number@|$((port + 20 + number))|"); done
    sed "${words[@]}" "$here/slurm.conf.in" > "$SLURM_CONF"
    printf 'AutoDetect=off\nNodeName=gpu[1-5] Name=gpu Type=toy File=%s\n' "$state/dev/nvidia[0-1]" > "$state/etc/gres.conf"
    # A step of a job is started without SLURM_CONF (the executor drops SLURM_*), so it looks where SLURM does by itself.
    mkdir -p /etc/slurm
    if [ -e /etc/slurm/slurm.conf ] && [ ! -L /etc/slurm/slurm.conf ]; then
        echo "error: /etc/slurm/slurm.conf is of another cluster; left alone" >&2
        exit 3
    fi
    ln -sfn "$SLURM_CONF" /etc/slurm/slurm.conf
}

start_munge() {
    runs "$state/run/munged.pid" munged && return
    rm -f "$state/run/munge.socket"*
    munged --key-file="$state/etc/munge.key" --socket="$state/run/munge.socket" --pid-file="$state/run/munged.pid" \
        --log-file="$state/log/munged.log" --seed-file="$state/run/munge.seed" --num-threads=2
    wait_for 10 munge -n -S "$state/run/munge.socket"
}

start_accounting() {
    [ -d "$state/db/mysql" ] || mariadb-install-db --no-defaults --user=root --datadir="$state/db" \
        --auth-root-authentication-method=normal --skip-test-db > "$state/log/install-db.log" 2>&1
    local sql=(mariadb --no-defaults --protocol=socket -S "$state/run/mariadb.sock" -u root)
    if ! runs "$state/run/mariadb.pid" mariadbd; then
        setsid mariadbd --no-defaults --user=root --datadir="$state/db" --socket="$state/run/mariadb.sock" \
            --port=$((port + 6)) --bind-address=127.0.0.1 --pid-file="$state/run/mariadb.pid" \
            --innodb-buffer-pool-size=64M --innodb-log-file-size=64M --innodb-lock-wait-timeout=900 \
            --log-error="$state/log/mariadb.err" >/dev/null 2>&1 </dev/null &
        wait_for 120 "${sql[@]}" -e 'select 1'
    fi
    "${sql[@]}" -e "create database if not exists slurm_acct_db;
        create user if not exists slurm@localhost identified by 'slurm'; grant all on slurm_acct_db.* to slurm@localhost;
        create user if not exists slurm@'127.0.0.1' identified by 'slurm'; grant all on slurm_acct_db.* to slurm@'127.0.0.1';"
    (umask 077; cat > "$state/etc/slurmdbd.conf" <<END
AuthType=auth/munge
AuthInfo=socket=$state/run/munge.socket
DbdHost=$host
DbdAddr=127.0.0.1
DbdPort=$((port + 19))
SlurmUser=root
CommunicationParameters=NoInAddrAny
LogFile=$state/log/slurmdbd.log
PidFile=$state/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((port + 6))
StorageUser=slurm
StoragePass=slurm
END
    )
    runs "$state/run/slurmdbd.pid" slurmdbd || slurmdbd
    wait_for 120 sacctmgr -n list cluster
    # An account with a QOS of at most two jobs at once.
    sacctmgr -i add cluster tests >/dev/null || true
    sacctmgr -i add qos narrow MaxSubmitJobsPerUser=2 >/dev/null || true
    sacctmgr -i add account lab Description=lab Organization=lab >/dev/null || true
    sacctmgr -i add user root Account=lab QOS=normal,narrow >/dev/null || true
}

are_up() {
    local up
    up=$(sinfo -h -N -o '%N %T' | sort -u | grep -cE ' (idle|mixed|allocated)$')
    [ "$up" = "$(wc -w <<< "$nodes")" ]
}

case $action in
start)
    write_configuration
    start_munge
    [ "$accounting" = --no-accounting ] || start_accounting
    runs "$state/run/slurmctld.pid" slurmctld || slurmctld
    wait_for 60 scontrol ping
    for node in $nodes; do runs "$state/run/slurmd-$node.pid" slurmd || slurmd -N "$node"; done
    wait_for 120 are_up
    echo "SLURM_CONF=$SLURM_CONF"
    ;;
stop)
    if runs "$state/run/slurmctld.pid" slurmctld; then timeout 10 scancel --user=root || true; fi
    for node in $nodes; do stop "$state/run/slurmd-$node.pid" slurmd; done
    stop "$state/run/slurmctld.pid" slurmctld
    stop "$state/run/slurmdbd.pid" slurmdbd
    stop "$state/run/mariadb.pid" mariadbd
    stop "$state/run/munged.pid" munged
    [ "$(readlink /etc/slurm/slurm.conf)" != "$SLURM_CONF" ] || rm /etc/slurm/slurm.conf
    ;;
*)
    echo "error: $action: allowed: start, stop" >&2
    exit 2
    ;;
esac
