"""Pages and the report as a reader meets them, in a headless browser that may reach nothing but the file."""

import base64
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lvis_rcnn.reporting import DIFFERENCES, PAGES, PICTURES, plots_of
from lvis_rcnn.reporting.html import Column, page
from lvis_rcnn.reporting.pages import write_pages
from tests.conftest import copy_study, run_snakemake
from tests.helpers.study_records import put, put_everything, study_with
from tests.workflow.test_end_to_end import FINISHED, run, tiny_study

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# Put before everything else: errors of the page, and whatever it tries to load.
WATCH = """<script>
const noted = {errors: [], loads: []};
addEventListener('error', event => noted.errors.push(event.message || event.target.outerHTML.slice(0, 200)), true);
addEventListener('unhandledrejection', event => noted.errors.push(String(event.reason)));
const say = console.error; console.error = (...words) => { noted.errors.push(words.join(' ')); say(...words); };
new PerformanceObserver(list => list.getEntries().forEach(entry => noted.loads.push(entry.name)))
  .observe({type: 'resource', buffered: true});
</script>"""
WAITED = """<script>
const wait = milliseconds => new Promise(done => setTimeout(done, milliseconds));
const tell = found => {
  const place = document.createElement('pre');
  place.id = 'told';
  place.textContent = btoa(unescape(encodeURIComponent(JSON.stringify({...noted, ...found}))));
  document.body.append(place);
};
addEventListener('load', async () => { await wait(300); tell(await (async () => { %s })().catch(
  error => { noted.errors.push(error.stack); })); });
</script>"""

# What no page may do: reach out of its window, so that a reader has to push it left and right.
WIDTHS = """
  const widest = Math.max(...[...document.querySelectorAll('body *')].filter(one => !one.closest('.wide, pre'))
    .map(one => one.getBoundingClientRect().right));
  const sizes = [...document.querySelectorAll('td, p')].map(one => parseFloat(getComputedStyle(one).fontSize));
  return {inside: widest <= innerWidth + 1 && document.documentElement.scrollWidth <= innerWidth,
          smallest: Math.min(...sizes), narrowest: Math.min(...[...document.querySelectorAll('td')].map(
            one => one.getBoundingClientRect().width))};
"""


def visited(page: Path, script: str, width: int = 1280) -> dict[str, Any]:
    """What ``script`` returns on a copy of ``page``, with ``errors`` and ``loads``; the browser has no network."""
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH: apt-get install chromium")
    text = page.read_text(encoding="utf-8")
    head, foot = text.index("<head>") + len("<head>"), text.rindex("</body>")
    copy = page.with_name(f"visited_{page.name}")
    copy.write_text(text[:head] + WATCH + text[head:foot] + WAITED % script + text[foot:], encoding="utf-8")
    # A window of the browser has a least width, a frame has not.
    frame = page.with_name(f"frame_{page.name}")
    size = f"border:0;width:{width}px;height:900px"
    frame.write_text(
        f'<!doctype html><body style="margin:0"><iframe src="{copy.name}" style="{size}">'
        "</iframe><script>const look = setInterval(() => {"
        " const told = document.querySelector('iframe').contentDocument?.querySelector('#told');"
        " if (told) { clearInterval(look); document.body.append(told.cloneNode(true)); } }, 100);</script></body>"
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    options += ["--proxy-server=127.0.0.1:9", "--window-size=1400,1000", "--virtual-time-budget=20000", "--dump-dom"]
    command = [CHROMIUM, *options, f"--user-data-dir={page.parent / 'profile'}", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    told = re.search(r'<pre id="told">([^<]*)</pre>', done.stdout)
    assert told is not None, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(base64.b64decode(html.unescape(told[1])))
    return found


# Put into a result before the report shows it in a frame that nothing outside may look into: what it says of itself.
SAID_INSIDE = """<script>
const errors = []; addEventListener('error', event => errors.push(event.message));
addEventListener('load', () => {
  document.querySelectorAll('.sortable th button')[0]?.click();
  parent.postMessage({errors, title: document.title, sorted: document.querySelector('[aria-sort]')?.ariaSort,
    outside: document.documentElement.scrollWidth - innerWidth, text: document.body.innerText.length}, '*');
});
</script>"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, study = tmp_path_factory.mktemp("pages"), study_with()
    put_everything(folder, study)
    put(folder / "mini" / "preflight.txt", "Preflight of study mini: ok\n")
    put(folder / "mini" / "benchmarks" / "draw.tsv", "s\tmax_rss\tcpu_time\n90.0\t2048.0\t60.0\n")
    write_pages(study, Path("study.yaml"), folder, folder / "pages")
    return folder / "pages"


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_page_loads_nothing_complains_of_nothing_and_fits_its_window(pages, name, width):
    found = visited(pages / f"{name}.html", WIDTHS, width)
    assert (found["errors"], found["loads"]) == ([], [])
    assert found["inside"]
    # Null is the least of nothing.
    assert found["smallest"] is None or found["smallest"] >= 13
    assert found["narrowest"] is None or found["narrowest"] >= 60


def test_a_telephone_shows_ap_first_and_sorts_by_it(pages):
    script = """
      const heads = [...document.querySelectorAll('th')].map(head => head.textContent.trim());
      const right = [...document.querySelectorAll('th')].map(head => head.getBoundingClientRect().right);
      const first = [...document.querySelector('tbody tr').cells].map(cell => cell.textContent);
      document.querySelectorAll('th button')[1].click();
      return {heads, right, first, sorted: document.querySelector('[aria-sort]').textContent.trim()};
    """
    wide, narrow = (visited(pages / "table.html", script, width) for width in (1280, 400))
    assert narrow["heads"][:6] == ["Backbone", "box AP", "mask AP", "APr", "APc", "APf"]
    assert narrow["right"][2] < 400
    assert (wide["heads"][1], sorted(wide["heads"])) == ("Style", sorted(narrow["heads"]))
    assert dict(zip(wide["heads"], wide["first"], strict=True)) == dict(
        zip(narrow["heads"], narrow["first"], strict=True)
    )
    assert (narrow["errors"], narrow["sorted"]) == ([], "box AP")


def test_the_table_of_categories_sorts_searches_and_narrows(pages):
    script = """
      const names = () => [...document.querySelectorAll('tbody tr:not([hidden])')].map(row => row.cells[0].textContent);
      const heads = [...document.querySelectorAll('th')], click = at => heads[at].querySelector('button').click();
      const type = (place, value, kind) => { place.value = value; place.dispatchEvent(new Event(kind)); };
      const found = {begins: names()};
      click(4); found.best = names(); found.says = heads[4].getAttribute('aria-sort');
      click(4); found.worst = names();
      click(0); found.by_name = names();
      const [search, choice] = document.querySelectorAll('input, select');
      type(search, 'KI', 'input'); found.searched = names();
      type(search, '', 'input'); type(choice, 'rare', 'change'); found.rare = names();
      found.count = document.querySelector('.count').textContent;
      return found;
    """
    found = visited(pages / "per_category.html", script)
    assert found["errors"] == []
    assert found["begins"] == ["kite", "cup", "bear", "tree"]
    assert (found["best"], found["says"]) == (["tree", "cup", "kite", "bear"], "descending")
    assert found["worst"] == ["kite", "cup", "tree", "bear"]
    assert found["by_name"] == ["bear", "cup", "kite", "tree"]
    assert found["searched"] == ["kite"]
    assert (found["rare"], found["count"]) == (["cup", "kite"], "2 of 4")


def test_the_results_table_sorts_by_the_numbers_its_cells_begin_with(pages):
    rows = [["a", "9.8 [7.0, 12.0]"], ["b", "23.1 ± 1.0"], ["c", "running 63 %"], ["d", "10.4 k"], ["e", "-0.3"]]
    columns = [Column("Backbone"), Column("box AP", by_number=True)]
    text = page("table", "numbers", columns=columns, rows=rows, methods=[], notes=[], provenance=[])
    (pages / "numbers.html").write_text(text, encoding="utf-8")
    script = """
      const names = () => [...document.querySelectorAll('tbody tr')].map(row => row.cells[0].textContent).join('');
      const head = document.querySelectorAll('th button')[1], found = {};
      head.click(); found.best = names(); head.click(); found.worst = names();
      return found;
    """
    found = visited(pages / "numbers.html", script)
    assert (found["errors"], found["best"], found["worst"]) == ([], "dbaec", "eabdc")
    text = (pages / "table.html").read_text()
    assert text.count('class="by_number"') == text.count("<th ") - 3  # Backbone, Style, Lr schd


@pytest.fixture(scope="module")
def report(finished_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a small study that is compared with another one: itself, before it knew."""
    folder = tmp_path_factory.mktemp("report")
    copy_study(finished_study, folder)
    shutil.copytree(folder / "results" / "tiny" / "r50", folder / "results" / "before" / "r50")
    study = tiny_study(folder, **FINISHED, report={"compare_with": "before"})
    ended = run(study)
    assert ended.code == 0, ended.text
    style = Path(__file__).parents[2] / "workflow" / "report" / "report.css"
    words = ["--report", "report.html", "--report-stylesheet", style, "--configfile", study]
    ended = run_snakemake(*words, cwd=folder)
    assert ended.code == 0, ended.text
    assert "WARNING" not in ended.text
    return folder / "report.html"


@pytest.mark.parametrize("width", [1280, 400])
def test_the_report_of_snakemake_shows_everything_without_a_network(report, width):
    script = """
      const found = {categories: Object.keys(categories).sort(), shown: {}, inside: {}};
      // What is asked for appears a little after the click before.
      const there = async look => {
        for (let tries = 0; tries < 40; tries += 1) { const one = look(); if (one) return one; await wait(25); }
        throw new Error(look + ' found nothing in ' + document.body.innerText.slice(0, 500));
      };
      const of_text = (kind, text) => () => [...document.querySelectorAll(kind)].filter(
        one => one.textContent.trim() === text).pop();
      const graph = await there(() => document.querySelector('#rulegraph canvas, #rulegraph svg'));
      found.graph = [graph.getBoundingClientRect().width, graph.getBoundingClientRect().height];
      found.rules = rulegraph_spec.data.flatMap(data => data.values ?? []).map(one => one.rule).filter(Boolean);
      const told = SAID_INSIDE, said = {};
      addEventListener('message', event => { said[event.data.title] = event.data; });
      const with_told = uri => {
        const [head, data] = uri.split(',');
        const text = decodeURIComponent(escape(atob(data))).replace('<head>', '<head>' + told);
        return [head + ',' + btoa(unescape(encodeURIComponent(text))), text.match(/<title>(.*?)<.title>/)[1]];
      };
      for (const category of found.categories) {
        (await there(of_text('a, li, span, div', category))).click();
        for (const path of Object.values(categories[category]).flat()) {
          const row = () => of_text('td', results[path].labels.shows)()?.closest('tr').querySelector('a, button');
          if (results[path].mime_type === 'text/html') {
            let title;
            [results[path].data_uri, title] = with_told(results[path].data_uri);
            (await there(row)).click();
            found.inside[path.split('/').pop()] = await there(() => said[title]);
          } else if (results[path].mime_type.startsWith('image')) {
            (await there(row)).click();
            const picture = await there(() => [...document.querySelectorAll('img')].find(
              one => one.src === results[path].data_uri && one.complete));
            const place = picture.getBoundingClientRect();
            found.shown[path] = [Math.min(picture.naturalWidth, place.width), place.top];
          }
        }
        (await there(() => document.querySelector('nav ol a'))).click();
      }
      found.captions = Object.values(results).map(one => one.caption.length);
      return found;
    """.replace("SAID_INSIDE", json.dumps(SAID_INSIDE).replace("</", "<\\/"))
    found = visited(report, script, width)
    assert found["errors"] == []
    assert not [load for load in found["loads"] if not load.startswith(("data:", "blob:"))]
    assert found["categories"] == [
        *("1 Results", "2 Plots", "3 Pictures", "4 Training", "5 Data", "6 Provenance and cost"),
    ]
    assert min(found["graph"]) > 100
    assert {"train", "infer", "evaluate", "table", "compare"} <= set(found["rules"])
    plots = plots_of(calibrated=False, on_the_way=False)
    assert {Path(file).stem for file in found["shown"]} == {*plots, *PICTURES, *DIFFERENCES, "training_batch"}
    assert all(width > 100 and top >= 0 for width, top in found["shown"].values()), found["shown"]
    assert set(found["inside"]) == {*(f"{name}.html" for name in PAGES), "comparison.html"}
    for name, inside in found["inside"].items():
        assert inside["errors"] == [], name
        assert inside["text"] > 50, name
        assert inside["outside"] <= 0, name
        is_sortable = name in ("table.html", "per_category.html", "cost.html")
        assert inside.get("sorted") == ("ascending" if is_sortable else None), name
    assert min(found["captions"]) > 80
