"""The suites, their costs, tables and verdicts; one row is run for real."""

import _thread
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from lmseg_jax import (
    configuration,
    experiment_jobs,
    experiment_plots,
    experiment_tables,
    experiments,
    suites,
)
from lmseg_jax.errors import UserError
from lmseg_jax.suites import Claim, Row

WORLDS = suites.SUITES["worlds"]
KINDS = ("a", "b")
RESULTS = {"budgets": "worlds"}  # a suite's folder of docs/results where it is another's
BUDGETS = ("_600", "", "_2400")  # ends of names


def result(miou, pq, *, elsewhere=None):
    """A finished run on two datasets whose scores lie one point around the means."""
    scores = {
        name: {"miou": miou + side, "pq": pq + side}
        for name, side in zip(KINDS, (-1, 1), strict=True)
    }
    cross = {}
    if elsewhere is not None:
        cells = {True: (miou, pq), False: elsewhere}
        cross = {
            scenes: {
                words: dict(zip(("miou", "pq"), cells[scenes == words], strict=True))
                for words in KINDS
            }
            for scenes in KINDS
        }
    cost = {"updates": 10, "images": 120, "gflop": 4000.0, "recipe": "r"}
    return {"scores": scores, "cross": cross, "cost": cost}


@pytest.fixture
def results(tmp_path):
    """Two seeds of three rows."""
    runs = {
        ("ours", 0): result(60, 40, elsewhere=(58, 38)),
        ("ours", 1): result(62, 41, elsewhere=(57, 37)),
        ("theirs", 0): result(59, 42, elsewhere=(30, 20)),
        ("theirs", 1): result(60, 40, elsewhere=(31, 20)),
        ("alone", 0): result(50, 30),
        ("alone", 1): result(70, 30),
    }
    for (name, seed), run in runs.items():
        path = tmp_path / f"{name}-{seed}.json"
        path.write_text(json.dumps(run | {"row": name, "seed": seed}))
    return tmp_path


ROWS = [Row(name, name.title(), ("worlds:lmseg",)) for name in ("ours", "theirs", "alone")]


@pytest.fixture
def found(results):
    return experiment_tables.collect("some", ROWS, results=results)


@pytest.mark.parametrize("name", suites.SUITES)
def test_the_rows_of_a_claim_train_on_as_many_images(name):
    suite = suites.SUITES[name]
    costs = {row.name: experiments.cost(row, []) for row in suite.rows}
    for claim in suite.claims:
        compared = [costs[row] for row in (claim.better, *claim.others)]
        assert len({(cost["images"], cost["updates"]) for cost in compared}) == 1
    recipes = {name: cost["recipe"] for name, cost in costs.items()}
    assert len(set(recipes.values())) == len(suite.rows)


@pytest.mark.parametrize("name", suites.SUITES)
def test_claims_and_repeated_rows_name_rows_of_their_suite(name):
    suite = suites.SUITES[name]
    names = [row.name for row in suite.rows]
    assert len(set(names)) == len(names)
    for claim in suite.claims:
        assert {claim.better, *claim.others} <= set(names)
    for row in suite.rows:
        assert not row.of or names.index(row.of) < names.index(row.name)


def test_three_budgets_are_as_far_apart_as_the_papers_and_share_the_runs_of_the_suite_worlds():
    rows = {row.name: row for row in suites.SUITES["budgets"].rows}
    methods = ("lmseg", "multi_head", "manual", "single")
    assert set(rows) == {f"{name}{end}" for name in methods for end in BUDGETS}
    worlds = {row.name: row for row in WORLDS.rows}
    for name in methods:
        updates = [experiments.cost(rows[f"{name}{end}"], [])["updates"] for end in BUDGETS]
        assert updates == [600, 1200, 2400]
        assert {rows[f"{name}{end}"].method for end in BUDGETS} == {worlds[name].label}
        recipes = [experiments.cost(row[name], [])["recipe"] for row in (rows, worlds)]
        assert recipes[0] == recipes[1]
    first, _, last = suites.SUITES["budgets"].claims
    assert first.paper == {"miou": (0.59,), "pq": (2.70,)}
    assert last.paper == {"miou": (0.22,), "pq": (2.47,)}


def test_ablations_change_what_their_name_says():
    plain = configuration.flat(configuration.load("worlds:lmseg"))

    def changed(row):
        values = configuration.flat(configuration.load(f"worlds:{row}"))
        return {key: values[key] for key in values if values[key] != plain[key]}

    assert changed("lmseg,no_guidance") == {"model.decoder.order": "visual"}
    assert changed("lmseg,text_visual") == {"model.decoder.order": "text-visual"}
    assert changed("lmseg,no_daa") == {"data.augmentation": "world_patterns"}
    assert changed("multi_head") == {
        "model.head": "multi_head",
        "model.decoder.order": "visual",
        "pretrained.text": "",
    }
    everywhere = configuration.load("worlds:world_colors")
    assert everywhere.evaluation.scenes == ("world_patterns", "world_colors", "world_coarse")
    for row in ("lmseg,no_words", "multi_head,no_daa", "lmseg,no_guidance,text_visual"):
        with pytest.raises(UserError, match="for lmseg no_guidance"):
            configuration.load(f"worlds:{row}")


def test_where_and_how_fast_a_run_goes_is_no_part_of_its_recipe():
    row = WORLDS.rows[0]
    plain = experiments.cost(row, [])
    moved = ["--config.data.root=/somewhere", "--config.data.workers=2", "--config.log.every=5"]
    assert experiments.cost(row, moved) == plain
    longer = experiments.cost(row, ["--config.optimizer.steps=10"])
    assert longer["recipe"] != plain["recipe"] and longer["images"] == 120


def test_a_result_of_another_recipe_is_refused(results):
    row = ROWS[0]
    assert experiments.finished(results, row, 0, expected="r")
    assert not experiments.finished(results, row, 7, expected="r")
    with pytest.raises(UserError, match="ours-0.json was made by another recipe"):
        experiments.finished(results, row, 0, expected="other")
    (results / "ours-7.json").write_text('{"cost": {')
    with pytest.raises(UserError, match="ours-7.json is no result of a run .*: remove it"):
        experiments.finished(results, row, 7, expected="r")


def test_other_files_beside_the_results_are_no_seeds(results):
    for name in ("ours-old", "ours-2-copy", "ours_600-1", "ours"):
        (results / f"{name}.json").write_text("{}")
    assert experiment_tables.seeds(results, ROWS[0]) == [0, 1]


def test_a_model_that_is_to_be_scored_again_but_is_not_there_is_an_error(tmp_path, capsys):
    manual = BY_NAME["manual"]
    known = {"cost": {"recipe": experiments.cost(manual, [])["recipe"]}}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "manual-0.json").write_text(json.dumps(known))
    arguments = ["--suite", "worlds", "--rows", "manual_union", "--seeds", "1"]
    with pytest.raises(UserError, match="row manual_union scores the model of .*/manual-0"):
        experiments.main([*arguments, "--workdir", str(tmp_path)])


def test_asked_rows_bring_those_whose_models_they_score():
    names = [row.name for row in experiments.chosen(WORLDS, "manual_union,lmseg")]
    assert names == ["lmseg", "manual", "manual_union"]
    assert experiments.chosen(WORLDS, "") == list(WORLDS.rows)
    with pytest.raises(UserError, match="--rows none: no such row; there are lmseg"):
        experiments.chosen(WORLDS, "none")


def test_what_is_to_be_done_is_said_before(tmp_path):
    rows = {row.name: row for row in WORLDS.rows}
    megapixels = 60 * experiments.SPEED
    costs = {name: {"images": 2760, "megapixels": megapixels} for name in rows}
    runs = [(0, rows[name]) for name in ("lmseg", "manual", "manual_union", "shuffled")]
    text = experiments.announce(runs, runs[1:], costs, workdir=tmp_path)
    assert "4 runs, 1 finished; to do: 2 trainings of 5,520 images" in text
    # two of a minute, 100 seconds around each of three processes, 25 minutes before one
    assert "about 32 minutes" in text
    assert "clip_worlds:shuffled" in text
    (tmp_path / "clip_worlds_shuffled").mkdir()
    (tmp_path / "clip_worlds_shuffled" / "done").touch()
    text = experiments.announce(runs, runs[1:], costs, workdir=tmp_path, jobs=2)
    assert "about 4 minutes" in text and "clip_worlds" not in text


def test_means_are_over_datasets_and_over_cells(found):
    assert [row["name"] for row in found["rows"]] == ["ours", "theirs", "alone"]
    first, second = found["rows"][0]["runs"]
    assert (first["miou"], second["pq"]) == (60, 41)
    assert first["diagonal"] == {"miou": 60, "pq": 40}
    assert first["elsewhere"] == {"miou": 58, "pq": 38}
    assert found["rows"][2]["runs"][0]["elsewhere"] is None
    assert found["rows"][0]["cost"] == {"updates": 10, "images": 120, "gflop": 4000.0}


def test_verdicts_follow_the_signs_of_paired_differences(found):
    rows = {row["name"]: row for row in found["rows"]}

    def judged(others, metric, where="mean"):
        return experiment_tables.judge(rows, Claim("", "ours", others), metric, where=where)

    above = judged(("theirs",), "miou")
    assert above == {
        "other": "theirs",
        "differences": {0: 1, 1: 2},
        "mean": 1.5,
        "verdict": "holds",
    }
    assert judged(("theirs",), "pq")["verdict"] == "undecided"  # -2 and +1
    better = judged(("theirs", "alone"), "miou")  # the mean of 50 and 70 is above that of 59 and 60
    assert better["other"] == "alone" and better["differences"] == {0: 10, 1: -8}
    assert judged(("theirs", "alone"), "miou", "elsewhere")["other"] == "theirs"
    assert judged(("alone",), "miou", "elsewhere") is None
    del rows["ours"]["runs"][1]
    assert judged(("theirs",), "miou")["verdict"] == "undecided"  # one seed


def test_tables_show_every_seed_and_every_claim(found):
    claims = [Claim("ours is better", "ours", ("theirs",), {"miou": (0.59,)}, "one", words=True)]
    text = experiment_tables.markdown(found, claims)
    assert "| Ours | 4 | **61.0** (60.0, 62.0) | 60.0 | 62.0 |" in text
    assert "| Alone |" in text and "| Alone | a |" not in text
    assert "| Ours | a | 61.0 / 40.5 | 57.5 / 37.5 |" in text
    expected = (
        "| ours is better | average | mIoU | Theirs | +1.0, +2.0 | +1.5 | holds | +0.59 (one) |"
    )
    assert expected in text
    assert "| ours is better | off the diagonal | PQ | Theirs | +18.0, +17.0 | +17.5 |" in text


def test_no_result_gives_a_sentence_and_no_picture(tmp_path):
    found = experiment_tables.collect("some", ROWS, results=tmp_path)
    assert "No run" in experiment_tables.markdown(found, WORLDS.claims)
    experiment_plots.scores(found, tmp_path / "scores.png")
    assert not (tmp_path / "scores.png").exists()


def test_tables_are_written_to_a_new_folder(tmp_path):
    arguments = ["--suite", "worlds", "--tables", "--workdir", str(tmp_path / "new")]
    assert experiments.main(arguments) == 0
    assert "No run" in (tmp_path / "new" / "tables.md").read_text()


def test_without_a_table_scores_are_a_diagonal_with_nothing_beside_it(found):
    alone = found["rows"][2]["runs"][1]
    assert experiment_tables.value(alone, "miou", where="diagonal") == 70
    assert experiment_tables.value(alone, "miou", where="elsewhere") is None
    claims = [Claim("", "ours", ("theirs", "alone"), words=True)]
    judged = {
        (item["where"], item["metric"]): item["other"]
        for item in experiment_tables.judgements(found, claims)
    }
    assert judged["mean", "miou"] == "alone"
    assert judged["elsewhere", "miou"] == "theirs"


def drawn(monkeypatch):
    """Numbers that are drawn at each line of each chart, in turn."""
    points, plot = [], Axes.plot

    def record(axes, x, y, **options):
        points.append((axes.get_title().replace("\n", " "), list(x), list(y)))
        return plot(axes, x, y, **options)

    monkeypatch.setattr(Axes, "plot", record)
    return points


def test_plots_show_each_seed_its_mean_and_the_papers_difference(found, tmp_path, monkeypatch):
    points = drawn(monkeypatch)
    experiment_plots.scores(found, tmp_path / "scores.png")
    assert ("mIoU, average", [60, 62], [0, 0]) in points
    assert ("mIoU, average", [61], [0]) in points
    assert ("PQ, off the diagonal", [], []) in points  # of a model for each
    claims = [Claim("ours is better", "ours", ("theirs",), {"miou": (0.59,)})]
    points.clear()
    experiment_plots.claims(experiment_tables.judgements(found, claims), tmp_path / "claims.png")
    assert points[:3] == [
        ("difference in mIoU, average", numbers, [0] * len(numbers))
        for numbers in ([1, 2], [1.5], [0.59])
    ]
    for name in ("scores", "claims"):
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("name", suites.SUITES)
def test_committed_tables_are_those_of_the_committed_results(name):
    folder = Path(__file__).resolve().parents[1] / "docs" / "results"
    suite = suites.SUITES[name]
    found = experiment_tables.collect(name, suite.rows, results=folder / RESULTS.get(name, name))
    expected = experiment_tables.markdown(found, suite.claims)
    assert (folder / f"{name}.md").read_text() == expected


def test_the_verdicts_that_are_told_are_those_of_the_committed_results():
    folder = Path(__file__).resolve().parents[1] / "docs"
    found = experiment_tables.collect("worlds", WORLDS.rows, results=folder / "results" / "worlds")
    judged = {}
    for item in experiment_tables.judgements(found, WORLDS.claims):
        numbers = ", ".join(f"{number:+.1f}" for number in item["differences"].values())
        key = (item["claim"], item["where"])
        judged.setdefault(key, {})[item["metric"]] = (numbers, item["verdict"])
    known = {
        tuple(sides[metric][0] for metric in ("miou", "pq")): sides for sides in judged.values()
    }
    _, _, text = (folder / "results.md").read_text().partition("| claim | differences in mIoU |")
    lines = [line.split(" | ") for line in text.partition("\n\n")[0].splitlines()[2:]]
    assert len(lines) >= 10
    for claim, miou, pq, verdict, _ in lines:
        sides = known[miou, pq]
        told = re.findall(r"\*\*(.*?)\*\*", verdict)
        expected = [sides["miou"][1], sides["pq"][1]]
        assert told in (expected, expected[:1] if len(set(expected)) == 1 else None), claim


@pytest.mark.parametrize("name", suites.SUITES)
def test_committed_results_are_of_todays_recipes(name):
    folder = Path(__file__).resolve().parents[1] / "docs" / "results" / RESULTS.get(name, name)
    suite = suites.SUITES[name]
    for row in suite.rows:
        recipe = experiments.cost(row, [])["recipe"]
        for seed in range(suite.seeds):
            assert experiments.finished(folder, row, seed, expected=recipe), (row.name, seed)


def test_a_run_that_fails_shows_the_end_of_its_log(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        experiments.launch("no_such_config", tmp_path / "run", [])


def test_a_run_goes_from_training_to_tables_and_is_not_made_again(tmp_path, capsys, monkeypatch):
    arguments = ["--suite", "worlds", "--quick", "--rows", "manual_union", "--seeds", "1"]
    arguments += ["--workdir", str(tmp_path)]
    assert experiments.main(arguments) == 0
    said = capsys.readouterr().out
    assert "2 runs, 0 finished; to do: 1 trainings of 24 images" in said
    result = json.loads((tmp_path / "results" / "manual-0.json").read_text())
    assert (
        set(result["scores"])
        == set(result["cross"])
        == {"world_patterns", "world_colors", "world_coarse"}
    )
    monkeypatch.setattr(experiments, "launch", None)  # nothing may be run again
    assert experiments.main(arguments) == 0
    assert "2 runs, 2 finished; to do: 0 trainings" in capsys.readouterr().out


@pytest.fixture
def launched(monkeypatch):
    """What would have been run: (config, workdir, flags) of each; every run scores its world 50."""
    calls = []

    def launch(config, workdir, flags):
        calls.append((config, workdir, list(flags)))
        workdir.mkdir(parents=True, exist_ok=True)
        world = config.partition(":")[2]
        (workdir / "scores.json").write_text(json.dumps({world: {"miou": 50.0}}))
        column = {scenes: {world: {"miou": 40.0}} for scenes in KINDS}
        (workdir / "cross.json").write_text(json.dumps(column))
        return 0

    monkeypatch.setattr(experiments, "launch", launch)
    monkeypatch.setattr(experiments, "gigaflops", lambda row, flags: 7.0)
    return calls


def test_the_models_of_a_row_are_trained_apart_and_scored_together(launched, tmp_path):
    row = BY_NAME["single"]
    known = {"recipe": "r"}
    where = {"workdir": tmp_path, "results": tmp_path}
    assert experiments.run_row(row, 3, known, flags=["--config.log.every=5"], **where) == 0
    worlds = ("world_patterns", "world_colors", "world_coarse")
    flags = ["--config.seed=3", "--config.log.every=5"]
    assert launched == [(f"worlds:{w}", tmp_path / "single-3" / w, flags) for w in worlds]
    result = json.loads((tmp_path / "single-3.json").read_text())
    assert result["scores"] == {world: {"miou": 50.0} for world in worlds}
    line = {world: {"miou": 40.0} for world in worlds}
    assert result["cross"] == dict.fromkeys(KINDS, line)  # a column of each model
    assert result["cost"] == {"recipe": "r", "gflop": 7.0} and result["seed"] == 3


def test_weights_are_made_once_and_given_to_every_seed(launched, tmp_path):
    row, weights = BY_NAME["shuffled"], tmp_path / "clip_worlds_shuffled"
    for seed in (0, 1):
        where = {"workdir": tmp_path, "results": tmp_path}
        assert experiments.run_row(row, seed, {}, flags=[], **where) == 0
    (pretraining, *runs) = launched
    assert pretraining == ("clip_worlds:shuffled", weights, [])
    given = [
        f"--config.pretrained.{part}={weights}/worlds_clip.safetensors"
        for part in ("image", "text")
    ]
    assert runs == [
        (
            "worlds:lmseg,no_guidance,no_daa",
            tmp_path / f"shuffled-{seed}",
            [f"--config.seed={seed}", *given],
        )
        for seed in (0, 1)
    ]


BY_NAME = {row.name: row for row in WORLDS.rows}


def named(*names, seed=0):
    return [(seed, BY_NAME[name]) for name in names]


@pytest.mark.skipif(not all(experiment_jobs.shares(2)), reason="one core, or none to be bound to")
def test_runs_at_a_time_have_cores_of_their_own():
    both, cores = threading.Barrier(2), []

    def run(number, seed, row):
        both.wait(timeout=60)  # one at a time would never come past
        program = "import os; print(sorted(os.sched_getaffinity(0)))"
        told = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
        cores.append(set(json.loads(told.stdout)))
        return 0

    here = os.sched_getaffinity(0)
    assert experiment_jobs.run_all(named("lmseg", "plain"), run, jobs=2) == 0
    assert cores[0] | cores[1] == here and not cores[0] & cores[1]
    assert os.sched_getaffinity(0) == here


def test_a_row_that_scores_anothers_model_comes_after_it():
    order = []

    def run(number, seed, row):
        order.append((number, seed, row.name))
        return 0

    missing = named("lmseg", "manual", "manual_union") + named("manual_union", seed=1)
    assert experiment_jobs.run_all(missing, run, jobs=2) == 0
    assert sorted(order) == [
        (1, 0, "lmseg"),
        (2, 0, "manual"),
        (3, 0, "manual_union"),
        (4, 1, "manual_union"),
    ]
    assert order.index((2, 0, "manual")) < order.index((3, 0, "manual_union"))


def test_nothing_is_begun_after_a_run_that_was_stopped_or_failed():
    begun = []

    def run(number, seed, row):
        begun.append(row.name)
        if row.name == "plain":
            raise UserError("it failed")
        return 130 if row.name == "no_daa" else 0

    assert experiment_jobs.run_all(named("lmseg", "no_daa", "single"), run, jobs=1) == 130
    with pytest.raises(UserError, match="it failed"):
        experiment_jobs.run_all(named("multi_head", "plain", "single"), run, jobs=1)
    assert begun == ["lmseg", "no_daa", "multi_head", "plain"]


def test_ctrl_c_waits_for_the_runs_under_way_and_begins_no_other():
    begun, ended, told = [], [], threading.Event()

    def run(number, seed, row):
        begun.append(row.name)
        if len(begun) == 2:
            _thread.interrupt_main()  # what Ctrl-C does to the command; the runs get it, too
            told.set()
        told.wait(timeout=60)
        time.sleep(0.5)  # saves what it has
        ended.append(row.name)
        return 130

    rows = named("lmseg", "plain", "single", "no_daa")
    assert experiment_jobs.run_all(rows, run, jobs=2) == experiment_jobs.STOPPED
    assert sorted(begun) == sorted(ended) == ["lmseg", "plain"]


@pytest.mark.parametrize("jobs", [0, 10_000])
def test_more_runs_at_a_time_than_cores_are_refused(tmp_path, jobs):
    with pytest.raises(UserError, match=f"--jobs is {jobs}; expected 1 to"):
        experiments.main(["--suite=worlds", f"--workdir={tmp_path}", f"--jobs={jobs}"])
