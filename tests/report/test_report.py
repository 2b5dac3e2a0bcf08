"""The page of a report: what it says is what the runs say, and a browser shows it without a net."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver

from ufm import cli, plots
from ufm.report import interactive, sections
from ufm.report import page as report
from ufm.runs import record

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ROOT / "figures"
ORBITS = {
    "value": [0.25, 0.5, 1.0], "morse_index": [0, 4, 10], "rank": [2, 1, 0],
    "nullity": [3, 2, 0], "smallest": [0.0, -0.1, -0.2], "K": [3, 3, 3],
}  # fmt: skip
VERDICTS = [
    {"claim": "zero & <one>", "measured": 1e-9, "predicted": 1e-6, "tolerance": 0.0,
     "outcome": "holds", "relation": "<"},
    # As they were written before there were inequalities.
    {"claim": "two", "measured": 3.0, "predicted": 2.0, "tolerance": 0.1, "outcome": "refuted"},
]  # fmt: skip


@pytest.fixture
def experiment(tmp_path) -> Path:
    """A folder of figures with one experiment that has a ladder."""
    home = tmp_path / "figures"
    with record.open_run(home / "data" / "x01_test", "x01_test", {"size": 3}) as handle:
        record.close_run(handle, {name: np.array(x) for name, x in ORBITS.items()}, {})
    told = {"title": "Title.", "claim": "Claimed.", "config": {}, "verdicts": VERDICTS}
    (home / "x01_test.json").write_text(json.dumps(told))
    with plots.style():
        for suffix in ("", "_more", "_quick"):
            plots.save(plots.figure(1.0, 1.0)[0], home / f"x01_test{suffix}")
    return home


def test_an_experiment_is_found_by_its_folder_its_verdicts_or_the_folder_of_all(experiment):
    for path in (experiment, experiment / "x01_test.json", experiment / "data" / "x01_test"):
        (section,) = sections.read(path)
        assert section.title == "x01: Title."
        assert [x._asdict() for x in section.verdicts] == [
            VERDICTS[0],
            VERDICTS[1] | {"relation": "="},
        ]
        assert [x.name for x in section.pictures] == ["x01_test.png", "x01_test_more.png"]
        assert len(section.plots) == 1
        assert section.facts["status"] == "complete"


def test_a_folder_of_runs_has_a_section_for_each_and_none_for_other_folders(experiment):
    home = experiment / "data"
    (home / "notes").mkdir()
    for seed in ("1", "0"):
        words = ["--K", "3", "--d", "3", "--n", "2", "--steps", "5", "--seed", seed]
        assert cli.main(["descend", *words, "--out", str(home / f"seed{seed}")]) in (0, 3)
    titles = [section.title for section in sections.read(home)]
    assert titles == ["Descent: seed0", "Descent: seed1", "x01: Title."]


def test_a_descent_of_unequal_classes_is_held_against_their_minimum(tmp_path):
    """Weights in the decay leave no one norm of H, but a value and a geometry."""
    words = ["--K", "3", "--d", "3", "--n", "8", "8", "2", "--lam", "0.05", "--out"]
    weights = ["--decay-weights", "0.125", "0.125", "0.5"]
    assert cli.main(["descend", *words, str(tmp_path / "run"), *weights]) == 0
    (section,) = sections.read(tmp_path / "run")
    assert [x.claim for x in section.verdicts] == ["certified gap, nats", "f, nats"]
    assert {x.outcome for x in section.verdicts} == {"holds"}
    (table,) = section.tables
    (name, *near), (_, *far) = table.rows
    assert "global minimum of K=3" in name
    # The gap of 1e-8 that ends the descent leaves the geometry 1e-3 at most.
    assert max(map(float, near)) < 1e-3 < 1e-2 < float(far[0])


@pytest.mark.parametrize(("steps", "outcome"), [("50", "not converged"), ("300", "holds")])
def test_tolerances_on_the_sphere_are_shares_of_f(tmp_path, steps, outcome):
    """After 50 steps the gap is below 0.5 nats, and as large as f."""
    line = "descend --K 3 --d 2 --n 2 --no-bias --lam 0 --features sphere --optimizer gd"
    words = [*line.split(), "--loss", "LogitAdjusted(scale=5)", "--steps", steps]
    assert cli.main([*words, "--gap-tol", "0.5", "--out", str(tmp_path / "run")]) == 0
    (section,) = sections.read(tmp_path / "run")
    assert section.verdicts[0].claim == "certified gap, share of f"
    assert section.verdicts[0].outcome == outcome


def test_a_page_holds_every_verdict_and_figure_and_loads_nothing(experiment):
    text = report.page(sections.read(experiment), "A <title>")
    assert text == report.page(sections.read(experiment), "A <title>")
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert "<title>A &lt;title&gt;</title>" in own
    assert "zero &amp; &lt;one&gt;" in own
    assert '<td class="n">1e-09</td><td class="r">&lt; 1e-06</td>' in own
    assert '<td class="n">3</td><td class="r">= 2 ± 0.1</td>' in own
    assert "&#34;" not in own
    assert "holds: 1" in own
    assert "refuted: 1" in own
    assert own.count('<img src="data:image/png;base64,') == 2
    loads = re.findall(r'(?:src|href)="([^"]*)"', own)
    assert all(x.startswith(("data:", "#")) for x in loads)


def test_the_ladder_shows_every_orbit_once_with_all_its_numbers():
    figure = interactive.ladder(ORBITS)
    shown = {(x, y) for trace in figure.data for x, y in zip(trace.x, trace.y, strict=True)}
    assert shown == set(zip(ORBITS["morse_index"], ORBITS["value"], strict=True))
    (hover,) = [trace.text[0] for trace in figure.data if trace.name == "rank 1"]
    assert (
        hover == "value: 0.5<br>morse index: 4<br>rank: 1<br>nullity: 2<br>smallest: -0.1<br>K: 3"
    )


def test_one_button_a_number_of_classes_shows_its_orbits_alone():
    twice = {name: [*x, *x] for name, x in ORBITS.items()} | {"K": [3] * 3 + [4] * 3}
    figure = interactive.ladder(twice)
    (menu,) = figure.layout.updatemenus
    assert [button.label for button in menu.buttons] == ["K = 3", "K = 4"]
    for button in menu.buttons:
        assert sum(button.args[0]["visible"]) == 3
    assert [trace.visible for trace in figure.data] == [False] * 3 + [True] * 3


def test_a_simplex_in_many_dimensions_is_seen_without_being_bent():
    K, d, n = 4, 7, 3
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.normal(size=(d, d)))[0]
    simplex = np.eye(K) - 1 / K
    W = np.pad(simplex, ((0, 0), (0, d - K))) @ Q
    labels = np.repeat(np.arange(K), n)
    (scene,) = sections._scenes(W[None], 2 * W[labels].T[None], labels)
    sides = np.linalg.norm(scene.means[:, None] - scene.means[None], axis=2)
    np.testing.assert_allclose(sides[~np.eye(K, dtype=bool)], 2 * np.sqrt(2), rtol=1e-12)
    np.testing.assert_allclose(scene.rows, scene.means, atol=1e-12)
    np.testing.assert_allclose(scene.vertices, scene.means, atol=1e-12)
    np.testing.assert_allclose(scene.features, scene.means[labels], atol=1e-12)


@pytest.mark.parametrize("name", ["absent", "."])
def test_what_is_no_run_is_refused_with_what_is(name, tmp_path, capsys):
    assert cli.main(["report", str(tmp_path / name), "--out", str(tmp_path / "r.html")]) == 2
    assert "allowed: the folder of a run" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


# In a browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    """A page with a descent, a census, a verification, a sweep, and two experiments."""
    home = tmp_path_factory.mktemp("pages")
    model = ["--K", "4", "--d", "5", "--n", "5", "--lam-W", "5e-3", "--lam-H", "5e-3"]
    (home / "grid.toml").write_text("K = 3\nd = 4\nn = 5\nseed = [0, 1]\nsteps = 200")
    runs = [home / name for name in ("descend", "census", "verify", "sweep")]
    few = ["--starts", "16", "--rounds", "1"]
    small = ["--K", "3", "--d", "4", "--n", "3", "--lam", "1e-2", "--escapes", "1", *few]
    arguments = [
        ["descend", *model, "--record-every", "10"],
        ["census", *model, *few],
        ["verify", *small],
        ["sweep", str(home / "grid.toml")],
    ]
    for words, out in zip(arguments, runs, strict=True):
        assert cli.main([*words, "--out", str(out)]) == 0
    told = [FIGURES / "c03_collapse.json", FIGURES / "data" / "c07_ladder"]
    page = home / "report.html"
    assert cli.main(["report", *map(str, (*runs, *told)), "--out", str(page)]) == 0
    return page


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium without a screen, which writes down every request that it makes."""
    found = (shutil.which(name) for name in ("chromium", "google-chrome"))
    programs = [next(filter(None, found), None), shutil.which("chromedriver")]
    if None in programs:
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "enable-unsafe-swiftshader", "disable-quic",
        "no-first-run", "disable-background-networking", "disable-component-update",
        "disable-sync", "window-size=1100,1000",
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(programs[1])
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, pages):
    """The page, loaded anew and drawn."""
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(pages.as_uri())
    count = pages.read_text(encoding="utf-8").count('<figure class="plot">')
    drawn = "return document.querySelectorAll('.js-plotly-plot .main-svg').length >= arguments[0]"
    WebDriverWait(browser, 60).until(lambda driver: driver.execute_script(drawn, count))
    return browser


def asked_for(browser) -> list[str]:
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [x["params"] for x in events if x["method"] == "Network.requestWillBeSent"]
    return [x["request"]["url"] for x in requests if x["documentURL"].startswith("file:")]


def plot_of(browser, title: str):
    """(element, id) of the plot with this title, scrolled to the middle of the window."""
    find = (
        "const e = [...document.querySelectorAll('.js-plotly-plot')]"
        ".find(e => e.layout.title.text.startsWith(arguments[0]));"
        "e.scrollIntoView({block: 'center'}); return e"
    )
    return browser.execute_script(find, title)


@pytest.mark.slow
def test_the_page_asks_for_nothing_and_logs_no_error(opened, pages):
    loud = [x for x in opened.get_log("browser") if x["level"] == "SEVERE"]
    assert loud == []
    assert {x for x in asked_for(opened) if not x.startswith("data:")} == {pages.as_uri()}
    assert "holds: " in opened.find_element("id", "outcomes").text
    heads = [x.text for x in opened.find_elements("css selector", "h2")]
    starts = ("Descent", "Census", "Theory against", "Sweep", "c03", "c07")
    assert len(heads) == len(starts)
    assert all(head.startswith(start) for head, start in zip(heads, starts, strict=True))
    missing = "return [...document.images].filter(x => !x.naturalWidth).length"
    assert opened.execute_script(missing) == 0
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert opened.execute_script(wide) == 0


@pytest.mark.slow
def test_hovering_over_a_rung_of_the_ladder_tells_its_orbit(opened):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.support.ui import WebDriverWait

    plot = plot_of(opened, "Critical points")
    dot = plot.find_element("css selector", ".scatterlayer .point")
    ActionChains(opened).move_to_element(dot).perform()
    hover = "return arguments[0].querySelector('.hoverlayer').textContent"
    WebDriverWait(opened, 10).until(lambda x: x.execute_script(hover, plot))
    told = opened.execute_script(hover, plot)
    for word in ("value: ", "morse index: ", "groups: ", "kind: "):
        assert word in told


@pytest.mark.slow
def test_the_simplex_of_four_classes_turns_under_the_mouse(opened):
    from selenium.webdriver import ActionChains

    plot = plot_of(opened, "The end of the run")
    eye = "return Object.values(arguments[0]._fullLayout.scene._scene.getCamera().eye)"
    before = np.array(opened.execute_script(eye, plot))
    canvas = plot.find_element("css selector", ".gl-container canvas")
    ActionChains(opened).drag_and_drop_by_offset(canvas, 120, 40).perform()
    after = np.array(opened.execute_script(eye, plot))
    assert np.linalg.norm(after - before) > 0.1
    assert np.linalg.norm(after) == pytest.approx(np.linalg.norm(before), rel=0.02)


@pytest.mark.slow
def test_the_slider_goes_back_to_the_start_of_a_collapse(opened):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.support.ui import WebDriverWait

    plot = plot_of(opened, "Collapse of 4")
    means = "return arguments[0]._fullData[1].x[0]"
    last = opened.execute_script(means, plot)
    rail = plot.find_element("css selector", ".slider-rail-touch-rect")
    width = rail.size["width"]
    ActionChains(opened).move_to_element_with_offset(rail, -width // 2 + 8, 0).click().perform()
    WebDriverWait(opened, 10).until(lambda x: x.execute_script(means, plot) != last)
