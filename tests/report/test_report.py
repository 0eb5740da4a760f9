"""The report as a reader gets it: pages, words, bytes; and what it refuses."""

import csv
import dataclasses
import json
import math
import re
import subprocess
import sys
import warnings
from functools import partial

import numpy as np
import pytest

from gatesearch.errors import UsageError
from gatesearch.files import FileRefusedError
from gatesearch.report import (
    comparison,
    curves,
    document,
    history,
    provenance,
    style,
    summary_page,
    write_report,
)
from gatesearch.report import predictions as pictures
from gatesearch.report.history import spearman
from gatesearch.report.record_queries import baseline_groups, shown_split, training_ratio
from gatesearch.report.results_csv import results_table
from gatesearch.report.summary_page import summary_sentences
from gatesearch.results import delta, front, summary
from tests.report.synthetic import TASKS, page_count, predictions, record, words

THREE = ("semseg", "depth", "normals")
NINE = (
    "uniform", "scalar", "dwa", "uncertainty", "auto_lambda", "rlw", "pcgrad", "cagrad", "mgda_ub",
)  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """One full report and its record."""
    folder = tmp_path_factory.mktemp("report")
    stored = predictions(folder / "p.npz", tasks=THREE, labels=("stl", "mtl", "trial 3"), frames=2)
    study = record(trials=6, predictions=stored)
    return study, write_report(study, folder=folder / "reports")


class TestFiles:
    def test_three_files_and_nothing_beside_them(self, drawn):
        _, path = drawn
        names = sorted(item.name for item in path.parent.iterdir())
        assert names == ["synthetic.csv", "synthetic.json", "synthetic.pdf"]

    @pytest.mark.slow("pages")
    def test_the_same_record_gives_the_same_bytes(self, drawn):
        study, path = drawn
        before = {item.name: item.read_bytes() for item in path.parent.iterdir()}
        write_report(study, folder=path.parent)
        assert {item.name: item.read_bytes() for item in path.parent.iterdir()} == before

    def test_every_kind_of_page_is_there_once(self, drawn):
        study, path = drawn
        # Cover and table, maps (three a page), history and influence, predictions of three tasks,
        # losses and gates, provenance.
        maps = -(-min(len(front(study)), 6) // 3)
        assert page_count(path.read_bytes()) == 2 + maps + 2 + 3 + 2 + 1

    def test_text_of_the_pdf_can_be_searched(self, drawn):
        _, path = drawn
        # TrueType fonts with a map to Unicode, not outlines.
        assert b"/TrueType" in path.read_bytes() or b"/CIDFontType2" in path.read_bytes()
        assert b"/ToUnicode" in path.read_bytes()

    def test_json_is_the_object_the_command_prints(self, drawn):
        study, path = drawn
        stored = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        assert stored == json.loads(json.dumps(summary(study, path)))
        assert stored["report"] == str(path)

    def test_csv_has_a_row_a_result_and_its_numbers(self, drawn):
        study, path = drawn
        with path.with_suffix(".csv").open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        assert len(rows) == len(study.baselines) + len(study.trials)
        assert [row["state"] for row in rows].count("failed") == 1
        for row, result in zip(rows, (*study.baselines, *study.trials), strict=True):
            for task in THREE:
                value = result.metrics.get("test", {}).get(task)
                assert row[f"test.{task}"] == ("" if value is None else repr(value))
        chosen = {str(trial.trial) for trial in front(study)}
        assert {row["trial"] for row in rows if row["front"] == "True"} == chosen

    def test_a_failure_leaves_the_old_report_alone(self, drawn, tmp_path, monkeypatch):
        study, _ = drawn
        (tmp_path / "synthetic.pdf").write_bytes(b"old")
        (tmp_path / "p.npz").touch()
        monkeypatch.setattr("gatesearch.report.provenance.pages", lambda record: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_report(study, folder=tmp_path)
        assert (tmp_path / "synthetic.pdf").read_bytes() == b"old"
        assert sorted(item.name for item in tmp_path.iterdir()) == ["p.npz", "synthetic.pdf"]

    def test_what_is_imported_where(self):
        heavy = ("torch", "torchvision", "optuna", "matplotlib", "pandas")
        code = (
            f"import sys; seen = lambda: [m for m in {heavy} if m in sys.modules];"
            "import gatesearch.results; print(seen());"
            "import gatesearch.report; print(seen())"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines() == ["[]", "['matplotlib', 'pandas']"]


class TestWeightings:
    def test_table_has_their_training_cost_and_rank(self):
        study = record(trials=2, failed=(), methods=("stl", "mtl"), weightings=NINE)
        text = words(comparison, study)
        for name in NINE[1:]:
            assert f"MTL · {name}" in text
        assert "x uniform" in text
        groups = {group.label: group for group in baseline_groups(study)}
        ratios = {label: group.mean(partial(training_ratio, study))
                  for label, group in groups.items()}  # fmt: skip
        assert math.isnan(ratios.pop("STL"))
        assert ratios.pop("MTL") == 1
        assert set(ratios.values()) == {2.0}
        assert "x uniform" not in words(comparison, record(trials=2, failed=()))

    def test_weights_are_drawn_as_shares(self):
        study = record(trials=2, failed=(), methods=("stl", "mtl"), weightings=("uniform", "rlw"))
        (page,) = (
            figure
            for figure in curves.pages(study)
            if any(text.get_text() == "Task weights" for text in figure.texts)
        )
        drawn = np.array([axes.lines[0].get_ydata() for axes in page.axes])
        assert all(len(axes.lines) == 1 for axes in page.axes)
        assert drawn.sum(0) == pytest.approx(np.ones(30))
        mine = study.baselines[-1].curves
        assert drawn[0, 0] == pytest.approx(
            mine["weight.semseg"][0] / sum(mine[f"weight.{task}"][0] for task in THREE)
        )
        assert "Task weights" not in words(curves, record(trials=2, failed=()))

    def test_predictions_of_each_have_their_name(self, tmp_path):
        labels = ("mtl + pcgrad", "stl", "trial 3")
        stored = predictions(tmp_path / "p.npz", tasks=THREE, labels=labels, frames=1)
        text = words(pictures, record(trials=2, failed=(), predictions=stored))
        assert "MTL · pcgrad" in text


class TestProtocols:
    def test_two_protocols_are_never_put_side_by_side(self, tmp_path):
        study = record(trials=1, failed=())
        stray = dataclasses.replace(study.baselines[1], environment={"protocol": "mtan-13"})
        study = dataclasses.replace(study, baselines=(study.baselines[0], stray))
        with pytest.raises(UsageError, match="its results also mtan-13"):
            write_report(study, folder=tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_published_rows_only_where_the_record_says_so(self):
        assert "RLW" not in words(summary_page, record(trials=3, failed=()))
        assert "Published rows" in words(
            summary_page, record(trials=3, failed=(), published="nyud")
        )

    def test_published_rows_of_other_tasks_are_left_out_and_said_so(self):
        text = words(summary_page, record(tasks=("depth",), trials=2, failed=(), published="nyud"))
        assert "Published rows not drawn: their tasks are depth, normals, semseg." in text


# Kinds of pages in the order of the report; summary, table and provenance are always there.
KINDS = ("summary_page", "comparison", "sharing", "history", "predictions", "curves", "provenance")


@pytest.mark.parametrize(
    ("make", "counts"),
    [
        # Losses alone have curves: there are no gates.
        pytest.param(lambda: record(trials=0), (1, 1, 0, 0, 0, 1, 1), id="baselines alone"),
        pytest.param(
            lambda: record(trials=0, methods=()), (1, 1, 0, 0, 0, 0, 1), id="nothing at all"
        ),
        pytest.param(
            lambda: record(trials=1, failed=(), tasks=("depth",), test=False),
            (1, 1, 1, 2, 0, 2, 1),
            id="one of all",
            marks=pytest.mark.slow("pages"),
        ),
        pytest.param(
            lambda: record(trials=2, failed=(0, 1)), (1, 1, 0, 0, 0, 1, 1), id="every trial failed"
        ),
        # Without Δ MTL there is no front to draw.
        pytest.param(
            lambda: record(trials=2, failed=(), methods=()),
            (1, 1, 0, 0, 0, 0, 1),
            id="no single-task networks",
            marks=pytest.mark.slow("pages"),
        ),
        pytest.param(
            lambda: record(trials=2, failed=(), tasks=tuple(TASKS), seeds=(0, 1)),
            (1, 1, 1, 2, 0, 2, 1),
            id="six tasks",
            marks=pytest.mark.slow("pages"),
        ),
        # 1 + 3 x 9 baselines need a second page; weightings have curves of their weights.
        pytest.param(
            lambda: record(trials=2, failed=(), seeds=(0, 1), weightings=NINE),
            (1, 2, 1, 2, 0, 3, 1),
            id="nine weightings",
            marks=pytest.mark.slow("pages"),
        ),
    ],
)
def test_every_study_has_a_report(make, counts, tmp_path):
    study = make()
    kinds = [module.__name__.rpartition(".")[2] for module in document.PAGES]
    drawn = [len(list(module.pages(study))) for module in document.PAGES]
    assert dict(zip(kinds, drawn, strict=True)) == dict(zip(KINDS, counts, strict=True))
    assert page_count(write_report(study, folder=tmp_path).read_bytes()) == sum(counts)


class TestHostile:
    @pytest.mark.slow("pages")
    def test_names_that_mean_something_to_typesetters_or_fonts(self, tmp_path):
        study = record(trials=2, failed=(1,), tasks=("depth",))
        odd = "深度_$x^2$_%\\frac{" + "very_long_" * 6
        info = dataclasses.replace(study.tasks[0], name=odd, metric="$\\alpha")

        def renamed(result):
            return dataclasses.replace(
                result,
                method="$\\odd" if result.method == "mtan" else result.method,
                reason="日本 $ {" + "x" * 900 if result.reason else "",
                metrics={
                    split: {k.replace("depth", odd): v for k, v in values.items()}
                    for split, values in result.metrics.items()
                },
                curves={k.replace("depth", odd): v for k, v in result.curves.items()},
                sharing={k.replace("depth", odd): v for k, v in result.sharing.items()},
                params={k.replace("depth", odd): v for k, v in result.params.items()},
            )

        study = dataclasses.replace(
            study,
            tasks=(info,),
            baselines=tuple(map(renamed, study.baselines)),
            trials=tuple(map(renamed, study.trials)),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pdf = write_report(study, folder=tmp_path).read_bytes()
        # Summary, table, map, two of the search, losses, gates, provenance.
        assert page_count(pdf) == 8
        text = "".join(words(module, study) for module in document.PAGES)
        # The table has room for 12 characters of a task's name.
        assert "??_$x^2$_%\\… ↓" in text
        assert "$\\odd" in text
        assert not {"深", "日"} & set(text)

    def test_figures_that_are_no_numbers(self, tmp_path):
        study = record(trials=4, failed=(), tasks=("semseg", "depth"))
        spoilt = []
        for i, trial in enumerate(study.trials):
            values = (math.nan, math.inf, -math.inf, 1.0)
            metrics = {s: m | {"semseg": values[i]} for s, m in trial.metrics.items()}
            curves = dict.fromkeys(trial.curves, (math.nan, math.inf, 1.0))
            sharing = dict.fromkeys(trial.sharing, (math.nan,) * 3)
            spoilt.append(
                dataclasses.replace(trial, metrics=metrics, curves=curves, sharing=sharing)
            )
        study = dataclasses.replace(study, trials=tuple(spoilt))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            write_report(study, folder=tmp_path)
        # The front holds nothing but the one trial whose metric is a number.
        assert [trial.trial for trial in front(study)] == [3]
        table = words(comparison, study)
        assert "Trial 3" in table
        assert "nan" not in table
        assert "inf" not in table

    def test_a_ruined_trial_does_not_flatten_the_chart(self):
        study = record(trials=6, failed=())
        ruined = dataclasses.replace(
            study.trials[0],
            gflops=20.0,
            metrics={
                s: {t: v * 3 for t, v in m.items()} for s, m in study.trials[0].metrics.items()
            },
        )
        study = dataclasses.replace(study, trials=(ruined, *study.trials[1:]))
        assert delta(study, ruined, "test") < -50
        (figure,) = summary_page.pages(study)
        assert figure.axes[0].get_ylim()[0] > -20
        assert "1 trial below the chart." in words(summary_page, study)


class TestSentences:
    def test_the_headline_names_the_best_on_validation_and_its_measured_figures(self):
        study = record(trials=12)
        best = max(front(study), key=lambda t: delta(study, t, "validation"))
        first = summary_sentences(study, "test")[0]
        gain, cost = style.signed(delta(study, best, "test")), style.compact(best.gflops)
        # The generator gives STL 12.4 GFLOPs and MTL 6.1.
        fewer, more = 100 * (1 - best.gflops / 12.4), 100 * (best.gflops / 6.1 - 1)
        assert first == (
            f"Trial {best.trial}, the best on validation, reaches Δ MTL {gain} % (test) at {cost} "
            f"GFLOPs: {fewer:.0f} % fewer than STL, {more:.0f} % more than MTL."
        )

    def test_unequal_training_is_said(self):
        study = record(trials=3, failed=())
        assert "UNEQUAL" not in words(summary_page, study)
        longer = tuple(dataclasses.replace(trial, epochs=90) for trial in study.trials)
        told = words(summary_page, dataclasses.replace(study, trials=longer))
        assert "UNEQUAL TRAINING: the front 90 epochs, baselines 30." in told

    def test_no_trials_is_said(self):
        assert summary_sentences(record(trials=0), "test") == [
            "No trial has been run yet: the baselines stand alone."
        ]

    def test_one_split_throughout(self):
        study = record(trials=3, failed=())
        assert shown_split(study) == "test"
        last = front(study)[-1]
        bare = dataclasses.replace(last, metrics={"validation": last.metrics["validation"]})
        trials = tuple(bare if t is last else t for t in study.trials)
        assert shown_split(dataclasses.replace(study, trials=trials)) == "validation"

    def test_bold_marks_the_best_of_a_column(self):
        study = record(trials=0, methods=("stl", "mtl"))
        (figure,) = comparison.pages(study)
        bold = {t.get_text() for t in figure.texts if t.get_weight() == "bold"}
        best = max(b.metrics["test"]["semseg"] for b in study.baselines)
        worst = min(b.metrics["test"]["semseg"] for b in study.baselines)
        assert f"{best:.2f}" in bold
        assert f"{worst:.2f}" not in bold
        # GFLOPs of MTL, and of STL.
        assert "6.1" in bold
        assert "12.4" not in bold

    def test_provenance_tells_failures_operators_and_the_whole_definition(self):
        text = words(provenance, record(trials=6, failed=(5,)))
        assert "Trial 5 (seed 0) failed: loss of depth is not finite" in text
        assert "aten::upsample_bilinear2d  4" in text
        for key in ("model.output_stride", "search.lambda_s", "fingerprint", "sha256", "torch"):
            assert key in text

    def test_a_trial_that_was_stopped_is_called_so_on_every_page(self):
        study = record(trials=4, failed=(2,))
        stopped = dataclasses.replace(study.trials[1], state="stopped", reason="behind the median")
        study = dataclasses.replace(study, trials=(study.trials[0], stopped, *study.trials[2:]))
        text = words(provenance, study)
        assert "6 complete, 1 failed, 1 stopped" in text
        assert "Failed or stopped (2)" in text
        assert "Trial 1 (seed 0) stopped: behind the median" in text
        assert "failed, stopped" in words(history, study)
        assert list(results_table(study)["state"])[4:] == [
            "complete", "stopped", "failed", "complete",
        ]  # fmt: skip

    def test_any_method_has_its_name_and_its_parameters_drawn(self):
        study = record(trials=3, failed=())
        trials = tuple(
            dataclasses.replace(trial, method="my_method", params={"rank": 2.0 + i, "kind": "low"})
            for i, trial in enumerate(study.trials)
        )
        baselines = (*study.baselines, dataclasses.replace(study.baselines[1], method="my_method"))
        text = words(history, dataclasses.replace(study, trials=trials))
        assert "rank" in text.splitlines()
        assert "kind" not in text.splitlines()
        assert "My method" in words(comparison, dataclasses.replace(study, baselines=baselines))

    def test_seeds_share_a_row_with_their_deviation(self):
        study = record(trials=0, seeds=(0, 1, 2), methods=("stl", "mtl"))
        group = baseline_groups(study)[1]
        gains = [delta(study, r, "test") for r in group.results]
        assert len(group.results) == 3
        assert group.deviation(lambda r: delta(study, r, "test")) == pytest.approx(
            np.std(gains, ddof=1)
        )

    def test_an_empty_study_has_an_empty_table(self):
        assert results_table(record(trials=0, methods=())).empty


class TestSpearman:
    def test_by_hand(self):
        # Ranks 1 2 3 4 5 and 2 1 4 3 5: 1 - 6 * 4 / (5 * 24).
        assert spearman([1, 2, 3, 4, 5], [20, 10, 40, 30, 50]) == pytest.approx(0.8)

    def test_ties_take_their_mean_rank(self):
        # Ranks 1.5 1.5 3 and 1 2 3: covariance 1.5 over sqrt(1.5 * 2).
        assert spearman([0, 0, 9], [1, 2, 3]) == pytest.approx(1.5 / math.sqrt(3))

    def test_a_constant_has_none(self):
        assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))


class TestPictures:
    @pytest.mark.parametrize(
        ("truth", "fault"),
        [
            (
                np.ones((1, 4, 4), np.float32),
                r"truth.depth must cover \(2, 4, 4\) frames, .* found",
            ),
            (np.ones((2, 4, 4, 3), np.float32), "Truth of depth cannot be drawn as range, found"),
            (np.array([print], dtype=object), "truth.depth must hold numbers .* found object"),
            (None, "File is not a zip file"),
        ],
    )
    def test_pages_of_damaged_predictions_are_left_out_with_a_word(self, tmp_path, truth, fault):
        path, told = tmp_path / "p.npz", []
        if truth is None:
            path.write_bytes(b"no archive")
        else:
            np.savez(path, image=np.zeros((2, 4, 4, 3), np.uint8), **{"truth.depth": truth})
        study = record(trials=0, tasks=("depth",), predictions=path)
        report = write_report(study, folder=tmp_path / "out", warn=told.append)
        assert len(told) == 1
        assert re.search(rf"p\.npz is damaged: {fault}.*delete it: .* without its pages$", told[0])
        without = dataclasses.replace(study, predictions=None)
        pages = page_count(write_report(without, folder=tmp_path / "none").read_bytes())
        assert page_count(report.read_bytes()) == pages
        assert path.exists()

    @pytest.mark.parametrize("harm", ["float", "above 255", "negative"])
    def test_classes_that_are_none_are_not_drawn(self, tmp_path, harm):
        values = {"float": 1.5, "above 255": 256, "negative": -1}[harm]
        labels = {"truth.semseg": np.full((1, 4, 4), values)}
        np.savez(tmp_path / "p.npz", image=np.zeros((1, 4, 4, 3), np.uint8), **labels)
        study = record(trials=0, tasks=("semseg",), predictions=tmp_path / "p.npz")
        with pytest.raises(FileRefusedError, match="Truth of semseg cannot be drawn as classes"):
            list(pictures.pages(study))

    def test_of_many_trials_the_cheapest_and_the_dearest_are_drawn(self, tmp_path):
        labels = ("stl", "mtl", "mtan", "trial 0", "trial 1", "trial 2")
        stored = predictions(tmp_path / "p.npz", tasks=THREE, labels=labels, frames=1)
        study = record(trials=3, failed=(), predictions=stored)
        costs = (2.0, 3.0, 1.0)
        trials = [
            dataclasses.replace(t, gflops=c) for t, c in zip(study.trials, costs, strict=True)
        ]
        text = words(pictures, dataclasses.replace(study, trials=tuple(trials)))
        assert text.index("Trial 2") < text.index("Trial 1")
        assert "Trial 0" not in text


class TestStyle:
    @pytest.mark.parametrize(
        ("value", "shown"),
        [(1.254, "+1.25"), (-0.5, "−0.50"), (0.0, "0.00"), (-0.001, "0.00"), (math.nan, "–")],
    )
    def test_signed(self, value, shown):
        assert style.signed(value) == shown

    @pytest.mark.parametrize(
        ("value", "shown"), [(892.6, "893"), (31.24, "31.2"), (0.04123, "0.0412"), (0.0, "0")]
    )
    def test_compact(self, value, shown):
        assert style.compact(value) == shown

    def test_clip_keeps_to_one_printable_line(self):
        assert style.clip("a\n b\t深", 10) == "a b ?"
        assert style.clip("abcdef", 4) == "abc…"
