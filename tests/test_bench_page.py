"""The page of a record: it needs no network, shows every row, escapes every text, and runs in a browser."""

import json
import re
import shutil
import subprocess
from collections import Counter
from html import escape
from html.parser import HTMLParser

import pytest

import bench_records as records
from xpconv.bench import page, reading
from xpconv.bench.compare import Change, Comparison, Machine
from xpconv.bench.scale import LogAxis

SAMPLES = ("full", "empty", "one_row", "interrupted", "two_devices", "hostile")
TIMES = "\u00d7"


class Parsed(HTMLParser):
    """Elements with their attributes, the texts outside scripts and styles, and what scripts hold."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self.scripts, self._open = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        inside = self._open[-1] if self._open else ""
        if inside == "script":
            self.scripts.append(data)
        elif inside != "style":
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).replace("\u00a0", " ").split())

    def all(self, tag, class_=None):
        return [a for name, a in self.elements if name == tag and (not class_ or class_ in a.get("class", "").split())]


def parsed(record, compared=None):
    return Parsed(page.html(record, compared))


# -- the file --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=SAMPLES)
def sample(request):
    return getattr(records, request.param)()


def test_nothing_is_loaded_from_anywhere(sample):
    html = page.html(sample)
    addresses = [a[key] for _, a in Parsed(html).elements for key in ("href", "src", "action", "data") if a.get(key)]
    assert all(address.startswith("#") for address in addresses)
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttpRequest|import\(", html)


def test_ids_are_unique_and_links_lead_to_one(sample):
    elements = parsed(sample).elements
    ids = Counter(a["id"] for _, a in elements if "id" in a)
    assert max(ids.values()) == 1
    assert {a["href"][1:] for _, a in elements if "href" in a} <= set(ids)


def test_the_record_can_be_taken_from_the_page(sample):
    embedded = parsed(sample).scripts[0]
    assert json.loads(embedded) == sample
    assert not set("<>&") & set(embedded)


def test_no_text_of_the_record_is_read_as_markup():
    told = parsed(records.hostile())
    harmless = json.loads(json.dumps(records.hostile()).replace(json.dumps(records.HOSTILE)[1:-1], "plain"))
    assert [tag for tag, _ in told.elements] == [tag for tag, _ in parsed(harmless).elements]
    assert records.HOSTILE in told.text
    assert len(told.scripts) == 2


def test_a_dollar_in_a_text_is_a_dollar():
    record = records.one_row()
    record["machine"]["processor"] = "$main ${script} $1"
    assert "$main ${script} $1, 2 threads" in parsed(record).text


def test_the_file_is_written_as_utf_8(tmp_path):
    page.write(records.full(), tmp_path / "bench.html")
    assert (tmp_path / "bench.html").read_text(encoding="utf-8") == page.html(records.full())
    assert [file.name for file in tmp_path.iterdir()] == ["bench.html"]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OSError, match=r"missing.bench\.html"):
        page.write(records.one_row(), tmp_path / "missing" / "bench.html")


# -- what it says ----------------------------------------------------------------------------------------------------


def test_every_row_is_a_line_of_the_table(sample):
    told = parsed(sample)
    lines = [a["id"] for a in told.all("tr") if a.get("id", "").startswith("row-")]
    assert lines == [f"row-{n}" for n in range(len(sample["rows"]))]
    values = {a["data-value"] for a in told.all("td", "number")}
    assert {str(row["ms"]) for row in sample["rows"]} <= values


def test_every_row_with_operations_is_a_point_of_its_devices_roofline():
    record = records.two_devices()
    told = parsed(record)
    expected = [f"#row-{n}" for n, row in enumerate(record["rows"]) if row["operations"]]
    assert sorted(a["href"] for a in told.all("a", "point")) == sorted(expected)
    assert len(told.all("svg", "plot")) == 2


def test_a_point_lies_where_its_intensity_and_speed_are():
    row = records.row("net", "layer", operations=1e9, size=1e7, ms=(10.0, 10.0, 10.0))
    limits = {"matrix_gflops": {"float32": 1e3}, "copy_gbs": 10.0}
    x, y = reading.roof_axes([row], limits)
    assert (x.low, x.high) == pytest.approx((100 / 10 / 1.6, 160))
    use = Parsed(page.html(records.record([row], devices={"cpu": records.CPU | {"limits": limits}}))).all("use")
    assert {(a["x"], a["y"]) for a in use} >= {(f"{x.at(100)}%", f"{100 - y.at(100)}%")}


def test_the_roofs_are_labelled_with_what_was_measured():
    text = parsed(records.full()).text
    assert "matrix product float32 215 GFLOP/s" in text
    assert "matrix product float64 107 GFLOP/s" in text
    assert "copy 30.8 GB/s" in text


def test_roofs_too_near_for_a_label_each_have_them_one_below_the_other():
    labels = parsed(records.two_devices()).all("text", "end")
    gpu = [float(a["dy"]) for a in labels if a["class"].startswith("roof-label")][2:]
    assert gpu == [4 - 7.5, 4 + 7.5]


def test_points_above_the_roof_are_counted_and_explained():
    record = records.full()
    limits = records.CPU["limits"]
    above = sum(bool(row["operations"]) and row["gflops"] > reading.roof(row, limits) for row in record["rows"])
    assert f"{above} points lie above the roof" in parsed(record).text
    assert "do fewer products than the definition" in parsed(record).text
    slow = records.record([records.row("net", "layer", ms=(99.0, 98.0, 101.0))])
    assert "No point lies above the roof" in parsed(slow).text


def test_a_bar_goes_from_one_to_the_ratio():
    told = parsed(records.record([records.row("net", "layer", rivals={"torch": (2.0, 1.8, 2.1)})]))
    (bar,) = told.all("rect", "bar-faster")
    axis = LogAxis(0.5, 2)
    assert float(bar["x"].rstrip("%")) == axis.at(1) == 50
    assert float(bar["width"].rstrip("%")) == axis.at(2) - axis.at(1)


@pytest.mark.parametrize(("low", "high"), [(0.6, 3.9), (0.29, 120), (1e-4, 1e4), (0.5, 2), (0.011, 0.012)])
def test_an_axis_is_rounded_outwards_whatever_its_ends(low, high):
    rounded = LogAxis(low, high).rounded()
    assert low / 10 <= rounded.low <= low < high <= rounded.high <= high * 10


@pytest.mark.parametrize(
    ("ratio", "colour"), [((1.2, 1.1, 1.3), "faster"), ((0.9, 0.8, 0.95), "slower"), ((1.2, 0.9, 1.4), "even")]
)
def test_a_bar_is_even_where_the_spread_holds_one(ratio, colour):
    told = parsed(records.record([records.row("net", "layer", rivals={"torch": ratio})]))
    assert [a["class"] for a in told.all("rect") if "class" in a] == [f"bar-{colour}"]


def test_means_are_geometric_and_say_of_how_many_rows():
    rows = [records.row("net", str(n), rivals={"torch": (ratio, 0.4, 9.0)}) for n, ratio in enumerate((0.5, 8.0))]
    rows += [records.row("net", "2", rivals={"scipy": (3.0, 2.0, 4.0)})]
    text = parsed(records.record(rows)).text
    assert f"torch 2.00{TIMES} faster in 1 of 2" in text
    assert f"scipy 3.00{TIMES}" in text
    assert "geometric mean torch 2.00, scipy 3.00" in text


def test_rows_without_operations_are_measured_in_bytes_per_second():
    row = records.row("pooling", "max 2x2", "max pool", operations=None, size=32e6, ms=(2.0, 1.9, 2.1), method="direct")
    text = parsed(records.record([row])).text
    assert "16.0 GB/s, 52 %" in text
    assert "No row was measured whose operations are counted." in text


def test_one_device_alone_is_said_not_to_be_compared():
    assert "Only cpu was measured" in parsed(records.full()).text


def race(cpu, gpu):
    rows = [
        records.row("net", "layer", batch=batch, ms=(ms, ms, ms), device=device)
        for device, times in (("cpu", cpu), ("cuda:0", gpu))
        for batch, ms in times.items()
    ]
    (found,) = reading.races(rows)
    return found


@pytest.mark.parametrize(
    ("cpu", "gpu", "outcome"),
    [
        ({1: 1.0, 8: 8.0, 64: 64.0}, {1: 2.0, 8: 2.0, 64: 4.0}, "wins from batch 8 on"),
        ({1: 1.0, 8: 8.0}, {1: 0.5, 8: 0.5}, "wins at every batch from 1 to 8"),
        ({1: 1.0, 8: 8.0}, {1: 2.0, 8: 9.0}, "does not win, up to batch 8"),
        ({1: 1.0, 8: 8.0, 64: 64.0}, {1: 0.5, 8: 9.0, 64: 4.0}, "wins from batch 64 on"),
        ({8: 8.0}, {1: 9.0, 8: 1.0}, "wins at batch 8"),
    ],
)
def test_the_batch_from_which_the_gpu_wins(cpu, gpu, outcome):
    found = race(cpu, gpu)
    assert found.outcome("cuda:0") == outcome
    assert found.per_item["cpu"] == {batch: ms / batch for batch, ms in cpu.items()}


def test_each_layer_of_two_devices_is_a_race():
    record = records.two_devices()
    told = parsed(record)
    assert len(told.all("svg", "race")) == len(reading.races(record["rows"]))
    assert "cuda:0 wins at every batch from 1 to 64" in told.text


def test_what_is_missing_is_said_with_its_reason():
    record = records.interrupted()
    text = parsed(record).text
    assert "The run is not complete (interrupted); not measured: 4 rows." in text
    assert "OPENBLAS_CORETYPE=Haswell may slow NumPy's BLAS" in text
    assert "onnxruntime is not installed: pip install onnxruntime onnx" in text
    assert "scipy in 5 rows: more than one channel" in text
    assert all(f"not measured: {key}" in text for key in record["not_measured"])


def test_a_complete_run_warns_of_nothing():
    assert not parsed(records.full()).all("ul", "warnings")


def test_changes_are_listed_worst_first_and_the_rest_is_counted():
    changes = [("a", 1.1, "slower"), ("b", 1.0, "same"), ("c", 0.7, "faster"), ("d", 1.5, "slower")]
    rows = tuple(Change(key, 2.0, 2.0 * times, times, verdict) for key, times, verdict in changes)
    machines = {"cpu": Machine(1.034, 0.02, "7 times of rivals")}
    compared = Comparison("2026-11-27T08:05:00+00:00", machines, rows, ("gone <key>",), ("e",), ("threads differ",))
    text = parsed(records.one_row(), compared).text
    assert "Since 27 November 2026, 08:05 UTC 2 slower, 1 faster, 1 same; 1 new, 1 gone." in text
    assert f"slower d 2.00 3.00 1.50{TIMES} slower a 2.00 2.20 1.10{TIMES} faster c 2.00 1.40 0.70{TIMES}" in text
    assert "cpu took 1.03 times as long as before by 7 times of rivals" in text
    assert "threads differ new: e gone: gone <key>" in text


# -- in a browser ----------------------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


def rendered(html, folder):
    """What the browser makes of a page, and what it has to say on its console."""
    (folder / "page.html").write_text(html, encoding="utf-8")
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
         "--enable-logging=stderr", "--v=0", "--virtual-time-budget=3000", "--dump-dom", f"file://{folder}/page.html"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def reported(html, script, folder):
    """What the script, run in the page, returns."""
    told = "const told = document.createElement('pre'); told.id = 'told';"
    told += f" told.textContent = {script}; document.body.append(told)"
    dom, console = rendered(html.replace("</body>", f"<script>{told}</script></body>"), folder)
    assert console == []
    return json.loads(Parsed(dom[dom.index('<pre id="told">') :]).texts[0])


@in_a_browser
def test_the_console_stays_silent(sample, tmp_path):
    dom, console = rendered(page.html(sample), tmp_path)
    assert console == []
    assert 'class="scripts"' in dom


@in_a_browser
def test_the_body_never_scrolls_sideways(tmp_path):
    pages = [escape(page.html(getattr(records, name)())) for name in ("full", "two_devices", "hostile")]
    widths = (400, 800, 1600)
    frames = "".join(f'<iframe width="{width}" srcdoc="{html}"></iframe>' for html in pages for width in widths)
    beyond = """JSON.stringify([...document.querySelectorAll("iframe")].map(
        (frame) => frame.contentDocument.documentElement.scrollWidth - frame.contentWindow.innerWidth))"""
    later = f"addEventListener('load', () => document.body.append({beyond}))"
    dom, console = rendered(f"<!doctype html><body>{frames}<script>{later}</script></body>", tmp_path)
    assert console == []
    assert max(json.loads(dom[dom.rindex("[") : dom.rindex("]") + 1])) <= 0


SORTED = """(() => {
  const heads = [...document.querySelectorAll("#all-rows thead th")];
  const head = (name) => heads.find((head) => head.textContent === name);
  const column = (name) => [...document.querySelectorAll("#all-rows tbody tr")]
    .filter((line) => !line.hidden).map((line) => line.cells[heads.indexOf(head(name))].textContent);
  const click = (name) => head(name).firstChild.click();
  const told = {};
  click("ms"); told.upward = column("ms"); told.up = head("ms").getAttribute("aria-sort");
  click("ms"); told.downward = column("ms"); told.down = head("ms").getAttribute("aria-sort");
  click("scipy \\u00d7"); told.unknown = column("scipy \\u00d7");
  click("layer"); told.layers = column("layer");
  told.sorted = heads.filter((head) => head.hasAttribute("aria-sort")).map((head) => head.textContent);
  const filter = document.getElementById("filter");
  filter.value = "vgg 224"; filter.dispatchEvent(new Event("input"));
  told.filtered = column("network"); told.said = document.getElementById("shown").textContent;
  return JSON.stringify(told);
})()"""


@in_a_browser
def test_the_table_sorts_by_any_column_and_filters_by_words(tmp_path):
    told = reported(page.html(records.full()), SORTED, tmp_path)
    upward = [float(text) for text in told["upward"]]
    assert (told["up"], told["down"], told["sorted"]) == ("ascending", "descending", ["layer"])
    assert upward == sorted(upward)
    assert [float(text) for text in told["downward"]] == upward[::-1]
    known = [float(text) for text in told["unknown"] if text != "\u2013"]
    assert known == sorted(known)
    assert told["unknown"][len(known) :] == ["\u2013"] * (len(upward) - len(known))
    assert told["layers"].index("5x5 1->6, 28x28") < told["layers"].index("11x11, 2048x2048")  # numbers in words count
    assert told["filtered"] == ["VGG-16"] * 2
    assert told["said"] == "2 of 55 rows, by layer, ascending"


POINTED = """(() => {
  const points = [...document.querySelectorAll(".point")], tip = document.getElementById("tip"), told = {};
  told.stops = points.filter((point) => point.getAttribute("tabindex") === "0").length;
  points[0].focus();
  points[0].dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
  told.focused = points.indexOf(document.activeElement);
  told.tip = tip.hidden ? "" : tip.textContent;
  document.activeElement.blur();
  told.hidden = tip.hidden;
  document.querySelector(".legend button").click();
  told.bright = [...new Set(points.filter((p) => !p.classList.contains("away")).map((p) => p.dataset.network))];
  const paper = () => getComputedStyle(document.body).backgroundColor;
  const before = paper(), theme = document.getElementById("theme"), name = theme.textContent;
  theme.click();
  told.theme = [before !== paper(), name !== theme.textContent];
  return JSON.stringify(told);
})()"""


@in_a_browser
def test_points_are_reached_by_keys_and_show_their_facts(tmp_path):
    told = reported(page.html(records.full()), POINTED, tmp_path)
    assert (told["stops"], told["focused"], told["hidden"]) == (1, 1, True)
    assert re.search(r"MobileNetV2: 3x3 of 144 maps, 56x56.*batch.*GFLOP/s.*torch 0\.9", told["tip"])
    assert told["bright"] == ["0"]
    assert told["theme"] == [True, True]
