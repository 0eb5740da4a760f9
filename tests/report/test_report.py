"""The report as a reader gets it: pages, words, bytes; and what it refuses."""

import csv
import dataclasses
import json
import math
import subprocess
import sys
import warnings
from functools import partial

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from gatesearch.comparisons import REPEAT
from gatesearch.drawing import DRAWINGS
from gatesearch.errors import DataError, UsageError
from gatesearch.report import (
    comparison,
    curves,
    document,
    history,
    provenance,
    sharing,
    style,
    summary_page,
    task_costs,
    text,
    write_report,
)
from gatesearch.report import predictions as pictures
from gatesearch.report.headline import summary_sentences
from gatesearch.report.history import spearman
from gatesearch.report.network_styles import COLOURS, network_styles
from gatesearch.report.record_queries import baseline_groups, shown_split, training_ratio
from gatesearch.report.results_csv import results_table
from gatesearch.results import delta, front
from gatesearch.summary import summary
from tests.report.synthetic import TASKS, page_count, pages, predictions, record, words

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

    def test_every_kind_of_section_is_there_once(self, drawn):
        study, path = drawn
        titles = [s.title for module in document.SECTIONS for s in module.sections(study)]
        assert titles == [
            "synthetic", "Networks compared", "What is shared, layer by layer", "The search",
            "What the parameters do", "Predictions", "Training", "Gates", "Provenance",
        ]  # fmt: skip
        assert page_count(path.read_bytes()) == len(document.draw_pages(study))

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

        def fail(record):
            raise DataError("no")

        monkeypatch.setattr(document.provenance, "sections", fail)
        with pytest.raises(DataError, match="no"):
            write_report(study, folder=tmp_path)
        assert (tmp_path / "synthetic.pdf").read_bytes() == b"old"
        assert [item.name for item in tmp_path.iterdir()] == ["synthetic.pdf"]

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
        *_, page = pages(curves, study)
        shares = [axes for axes in page.axes if axes.get_ylim()[1] == 1.03][-3:]
        drawn = np.array([axes.lines[0].get_ydata() for axes in shares])
        assert all(len(axes.lines) == 1 for axes in shares)
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


# Modules in the order of the report; summary, table and provenance are always there.
KINDS = (
    "summary_page", "comparison", "controls", "controllability", "sharing", "task_costs",
    "history", "predictions", "image_answers", "all_metrics", "curves", "provenance",
)  # fmt: skip


@pytest.mark.parametrize(
    ("make", "counts"),
    [
        # Losses alone have curves: there are no gates.
        pytest.param(
            lambda: record(trials=0), (1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1), id="baselines alone"
        ),
        pytest.param(
            lambda: record(trials=0, methods=()),
            (1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1),
            id="nothing at all",
        ),
        pytest.param(
            lambda: record(trials=1, failed=(), tasks=("depth",), test=False),
            (1, 1, 0, 0, 1, 0, 2, 0, 0, 0, 2, 1),
            id="one of all",
        ),
        pytest.param(
            lambda: record(trials=2, failed=(0, 1)),
            (1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1),
            id="every trial failed",
        ),
        # Without Δ MTL there is no front to draw.
        pytest.param(
            lambda: record(trials=2, failed=(), methods=()),
            (1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1),
            id="no single-task networks",
        ),
        pytest.param(
            lambda: record(trials=2, failed=(), tasks=tuple(TASKS), seeds=(0, 1)),
            (1, 1, 0, 0, 1, 0, 2, 0, 0, 0, 2, 1),
            id="six tasks",
        ),
        # Weightings have curves of their weights.
        pytest.param(
            lambda: record(trials=2, failed=(), seeds=(0, 1), weightings=NINE),
            (1, 1, 0, 0, 1, 0, 2, 0, 0, 0, 3, 1),
            id="nine weightings",
        ),
    ],
)
def test_every_study_has_its_sections(make, counts):
    study = make()
    kinds = [module.__name__.rpartition(".")[2] for module in document.SECTIONS]
    drawn = [len(list(module.sections(study))) for module in document.SECTIONS]
    assert dict(zip(kinds, drawn, strict=True)) == dict(zip(KINDS, counts, strict=True))


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
        assert page_count(pdf) == len(document.draw_pages(study))
        text = "".join(words(module, study) for module in document.SECTIONS)
        # The table breaks a task's name into three lines, the last of them shortened.
        assert "??_$x^2$_%\\frac" in text.replace("\n", "")
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
        (figure,) = pages(summary_page, study)
        assert figure.axes[0].get_ylim()[0] > -20
        assert "1 trial below the chart." in words(summary_page, study).replace("\n", " ")


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

    def test_a_repeated_trial_has_the_mean_of_its_seeds(self):
        study = record(trials=1, failed=(), methods=("stl", "mtl"))
        study = self.with_gains(study, (5.0,), (9.0,))
        (trial,) = study.trials
        # With another seed, whose single-task networks are the same, it gains less than MTL.
        mtl = delta(study, study.baselines[1], "test")
        repeat = self.with_gains(study, (2 * mtl - 6.0,), (8.0,)).trials[0]
        others = [dataclasses.replace(r, seed=9) for r in study.baselines]
        repeat = dataclasses.replace(repeat, trial=None, of=trial.trial, control=REPEAT, seed=9)
        repeated = dataclasses.replace(
            study, baselines=(*study.baselines, *others), controls=(repeat,)
        )
        assert summary_sentences(study, "test")[0].startswith("Trial 0, the best on validation")
        first = summary_sentences(repeated, "test")[0]
        assert first.startswith("No network of the front gains more than MTL")
        reached = (
            f"reaches Δ MTL {style.signed(mtl - 0.5)} % (test, mean of 2 seeds) at 8.50 GFLOPs"
        )
        assert reached in first
        assert f"{style.signed(mtl - 0.5)} %" in words(summary_page, repeated)

    @staticmethod
    def with_gains(study, gains, costs):
        """Give the complete trials these gains over STL on both splits, in percent, and costs."""
        single = study.baselines[0].metrics
        trials = tuple(
            dataclasses.replace(
                trial,
                gflops=cost,
                metrics={
                    split: {
                        task.name: values[task.name]
                        * (1 + (1 if task.higher_is_better else -1) * gain / 100)
                        for task in study.tasks
                    }
                    for split, values in single.items()
                },
            )
            for trial, gain, cost in zip(study.trials, gains, costs, strict=True)
        )
        return dataclasses.replace(study, trials=trials)

    def test_a_trial_that_a_baseline_dominates_never_leads(self):
        study = record(trials=2, failed=(), methods=("stl", "mtl"))
        mtl = delta(study, study.baselines[1], "test")
        # MTL has 6.1 GFLOPs; both trials gain less and cost more.
        study = self.with_gains(study, (mtl - 1, mtl - 2), (9.0, 7.0))
        first = summary_sentences(study, "test")[0]
        assert first == (
            f"No network of the front gains more than MTL (Δ MTL {style.signed(mtl)} % on test at "
            f"6.10 GFLOPs); trial 0, the best on validation, reaches Δ MTL "
            f"{style.signed(mtl - 1)} % (test) at 9.00 GFLOPs: 27 % fewer than STL, 48 % more than "
            "MTL."
        )

    def test_a_dominated_trial_gives_way_to_one_that_is_not(self):
        study = record(trials=2, failed=(), methods=("stl", "mtl", "cross_stitch"))
        stitch = delta(study, study.baselines[2], "validation")
        # Trial 0 gains the most but Cross-stitch (12.5 GFLOPs) has more for less; trial 1 is free.
        study = self.with_gains(study, (stitch - 0.1, stitch - 0.5), (13.0, 8.0))
        first = summary_sentences(study, "validation")[0]
        assert first.startswith(
            "Trial 1, the best on validation that no baseline dominates there, reaches"
        )
        assert "at 8.00 GFLOPs" in first

    def test_a_baseline_that_dominates_on_the_shown_split_comes_first(self):
        study = record(trials=2, failed=(), methods=("stl", "mtl", "mtan"))
        study = self.with_gains(study, (5.0, 4.0), (9.0, 8.5))
        mtan = study.baselines[2]
        # Better than both on test alone, at 7.9 GFLOPs.
        single = study.baselines[0].metrics["test"]
        better = {
            task.name: single[task.name] * (1.08 if task.higher_is_better else 0.92)
            for task in study.tasks
        }
        mtan = dataclasses.replace(mtan, metrics={**mtan.metrics, "test": better})
        study = dataclasses.replace(study, baselines=(*study.baselines[:2], mtan))
        assert summary_sentences(study, "test")[0].startswith(
            "No network of the front gains more than MTAN (Δ MTL +8.00 % on test at 7.90 GFLOPs); "
            "trial 0, the best on validation, reaches Δ MTL +5.00 % (test)"
        )

    def test_a_baseline_may_be_ahead_of_the_best_alone(self):
        study = record(trials=2, failed=(), methods=("stl", "mtl"))
        study = self.with_gains(study, (5.0, 4.0), (9.0, 8.0))
        trials = [
            dataclasses.replace(
                trial,
                metrics={
                    "validation": trial.metrics["validation"],
                    "test": {
                        task.name: study.baselines[0].metrics["test"][task.name]
                        * (1 + (1 if task.higher_is_better else -1) * gain / 100)
                        for task in study.tasks
                    },
                },
            )
            for trial, gain in zip(study.trials, (-9.0, 3.0), strict=True)
        ]
        study = dataclasses.replace(study, trials=tuple(trials))
        first = summary_sentences(study, "test")[0]
        assert first.startswith("MTL (Δ MTL ")
        assert "is ahead of trial 0, the best on validation, which reaches Δ MTL −9.00 %" in first

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
        (figure,) = pages(comparison, study)
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

    def test_provenance_names_the_parameters_of_any_method(self):
        study = record(trials=3)
        trials = tuple(
            dataclasses.replace(trial, params={"lambda_s": 0.5, "lambda_sparsity": 0.25})
            for trial in study.trials
        )
        text = words(provenance, dataclasses.replace(study, trials=trials))
        assert "λ 0.5, lambda_sparsity 0.25" in " ".join(text.split())

    def test_curves_of_policies_have_a_section(self):
        study = record(trials=2)
        task = study.tasks[0].name
        trials = tuple(
            dataclasses.replace(t, curves={**t.curves, f"selected.{task}": (0.5, 0.75)})
            for t in study.trials
        )
        text = " ".join(words(curves, dataclasses.replace(study, trials=trials)).split())
        assert "Mean probability that a task selects a block" in text
        assert "Mean probability that a task" not in words(curves, study)

    def test_provenance_shortens_no_key(self):
        study = record(trials=0)
        key = "options." + "a_method_of_a_long_name." * 4 + "option"
        study = dataclasses.replace(study, definition={**study.definition, key: "its value"})
        told = words(provenance, study)
        assert key in "".join(told.split())
        assert "its value" in told

    def test_a_trial_that_was_stopped_is_called_so_on_every_page(self):
        study = record(trials=4, failed=(2,))
        stopped = dataclasses.replace(study.trials[1], state="stopped", reason="behind the median")
        study = dataclasses.replace(study, trials=(study.trials[0], stopped, *study.trials[2:]))
        text = words(provenance, study)
        assert "6 complete, 1 failed, 1 stopped" in text
        assert "Failed or stopped (2)" in text
        assert "Trial 1 (seed 0) stopped: behind the median" in text
        assert "failed or stopped" in words(history, study)
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
    def test_frames_that_do_not_fit_are_left_out_with_a_word(self, tmp_path):
        np.savez(
            tmp_path / "p.npz",
            image=np.zeros((2, 4, 4, 3), np.uint8),
            **{"truth.depth": np.ones((1, 4, 4), np.float32)},
        )
        study = record(trials=0, tasks=("depth",), predictions=tmp_path / "p.npz")
        text = words(pictures, study).replace("\n", " ")
        assert "truth.depth must cover (2, 4, 4) frames, rows and columns, found (1, 4, 4)" in text
        write_report(study, folder=tmp_path / "out")

    @pytest.mark.parametrize(
        ("task", "array"),
        [
            ("semseg", np.zeros((1, 4, 4), np.float32)),
            ("semseg", np.full((1, 4, 4), -1, np.int64)),
            ("semseg", np.full((1, 4, 4), 256, np.int64)),
            ("semseg", np.zeros((1, 4, 4, 3), np.uint8)),
            ("depth", np.zeros((1, 4, 4, 3), np.float32)),
            ("normals", np.zeros((1, 4, 4), np.float32)),
            ("edges", np.zeros((1, 4, 4, 2), np.float32)),
        ],
    )
    def test_what_cannot_be_drawn_is_left_out_with_a_word(self, task, array, tmp_path):
        image = np.zeros((1, 4, 4, 3), np.uint8)
        np.savez(tmp_path / "p.npz", image=image, **{f"mtl.{task}": array})
        study = record(trials=0, tasks=(task,), predictions=tmp_path / "p.npz")
        text = words(pictures, study).replace("\n", " ")
        assert f"Left out: {task}: predictions of {task} cannot be drawn as" in text

    def test_images_that_are_none_are_left_out_with_a_word(self, tmp_path):
        np.savez(tmp_path / "p.npz", image=np.zeros((1, 4, 4)), **{"mtl.depth": np.ones((1, 4, 4))})
        study = record(trials=0, tasks=("depth",), predictions=tmp_path / "p.npz")
        text = words(pictures, study).replace("\n", " ")
        assert (
            "image must be uint8 (frames, height, width, 3), found float64 of shape (1, 4, 4)"
            in text
        )

    @pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut"])
    def test_a_damaged_file_is_left_out_with_a_word(self, content, tmp_path):
        (tmp_path / "p.npz").write_bytes(content)
        study = record(trials=0, predictions=tmp_path / "p.npz")
        assert "Left out: " in words(pictures, study)
        assert page_count(write_report(study, folder=tmp_path / "out").read_bytes()) > 0

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

    def test_nothing_read_from_disk_runs_code(self, tmp_path):
        np.savez(tmp_path / "p.npz", image=np.array([print], dtype=object))
        study = record(trials=0, predictions=tmp_path / "p.npz")
        assert "Left out: " in words(pictures, study)

    def test_classes_have_their_names_and_others_their_number(self, tmp_path):
        # Class 2 is the most frequent; 255 is ignored.
        truth = np.array([[[2, 2, 2], [0, 0, 3], [255, 255, 255]]], np.uint8)
        image = np.zeros((1, 3, 3, 3), np.uint8)
        np.savez(tmp_path / "p.npz", image=image, **{"truth.semseg": truth})
        study = record(trials=0, tasks=("semseg",), predictions=tmp_path / "p.npz")
        named = dataclasses.replace(study.tasks[0], class_names=("floor", "wall", "bed"))
        shown = words(pictures, dataclasses.replace(study, tasks=(named,))).splitlines()
        assert [name for name in shown if name in ("floor", "wall", "bed", "class 3")] == [
            "bed", "floor", "class 3",
        ]  # fmt: skip
        assert "class 255" not in shown
        assert "class 2" in words(pictures, study).splitlines()

    def test_one_colour_scale_for_labels_and_predictions(self):
        scale = DRAWINGS["range"]
        truth = np.linspace(1, 3, 101, dtype=np.float32)[None, None]
        # The 2nd and 98th percentiles of 1..3 are 1.04 and 2.96, of 1..4 1.06 and 3.94.
        wide = np.linspace(1, 4, 101, dtype=np.float32)[None, None]
        assert pictures.shared_limits(scale, truth, []) == pytest.approx((1.04, 2.96))
        assert pictures.shared_limits(scale, truth, [wide]) == pytest.approx((1.04, 3.94))
        # A diverged network widens the scale by the truth's own span at most.
        assert pictures.shared_limits(scale, truth, [wide * 1e6]) == pytest.approx((1.04, 4.88))
        lost = np.full_like(truth, np.nan)
        assert pictures.shared_limits(scale, truth, [lost]) == pytest.approx((1.04, 2.96))

    def test_predictions_beyond_the_truth_keep_their_colours(self, tmp_path):
        image = np.zeros((1, 1, 101, 3), np.uint8)
        truth = np.linspace(1, 3, 101, dtype=np.float32)[None, None]
        guess = np.linspace(2, 4, 101, dtype=np.float32)[None, None]
        below = np.full((1, 1, 101), -1, np.float32)
        arrays = {"truth.depth": truth, "mtl.depth": guess, "stl.depth": below}
        np.savez(tmp_path / "p.npz", image=image, **arrays)
        study = record(trials=0, tasks=("depth",), predictions=tmp_path / "p.npz")
        (figure,) = pages(pictures, study)
        shown = {i: image.get_array()[0] for i, image in enumerate(figure.axes[0].images)}
        # Image, truth, STL, MTL. 3 m and 4 m differ; a prediction below 0 m is no unknown label.
        assert tuple(shown[3][50]) != tuple(shown[3][-10])
        assert tuple(shown[2][0]) == tuple(shown[1][0])
        assert tuple(shown[2][0]) != (0, 0, 0)


class TestColours:
    def test_a_network_has_the_same_style_on_all_pages(self):
        study = record(trials=6, failed=(), weightings=NINE)
        styles = network_styles(study)
        assert len({(look.colour, look.marker) for look in styles.values()}) >= len(styles) - len(
            front(study)
        )
        (first,) = pages(summary_page, study)
        drawn = {
            (line.get_color(), line.get_marker())
            for line in first.axes[0].lines
            if line.get_marker()
        }
        assert {
            (styles[group.label].colour, styles[group.label].marker)
            for group in baseline_groups(study)
        } <= drawn
        *_, losses = pages(curves, record(trials=6, failed=()))
        plain = network_styles(record(trials=6, failed=()))
        used = {line.get_color() for axes in losses.axes for line in axes.lines}
        assert used <= {look.colour for look in plain.values()}

    def test_colours_can_be_told_apart(self):
        shades = [look.colour for look in network_styles(record(trials=0)).values()]
        shades += [*COLOURS, style.ACCENT]
        values = np.array([to_rgb(shade) for shade in dict.fromkeys(shades)]) * 255
        distances = [np.linalg.norm(a - b) for i, a in enumerate(values) for b in values[i + 1 :]]
        assert min(distances) > 30

    def test_a_baseline_without_figures_changes_no_colour_of_the_others(self):
        study = record(trials=0, methods=("stl", "mtl", "nddr", "other", "third"))
        before = network_styles(study)["Third"]
        spoilt = [
            dataclasses.replace(r, metrics={}) if r.method == "nddr" else r for r in study.baselines
        ]
        assert (
            network_styles(dataclasses.replace(study, baselines=tuple(spoilt)))["Third"] == before
        )


class TestSharing:
    def test_layers_by_stages(self):
        names = ["stem", "layer1.0.conv1", "layer1.0.downsample", "layer2.0.conv1"]
        assert sharing.layer_names(names) == sharing.LayerNames(
            ("stem", "0.conv1", "0.down", "0.conv1"), (("layer1", 1, 2), ("layer2", 3, 1))
        )

    def test_what_all_begin_with_is_left_out(self):
        names = ["backbone.blocks.0.depthwise", "backbone.blocks.1.expand"]
        assert sharing.layer_names(names).short == ("dw", "expand")
        assert [stage for stage, _, _ in sharing.layer_names(names).stages] == ["0", "1"]


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

    @pytest.mark.parametrize(
        ("seconds", "shown"),
        [(0.0, "0 s"), (5.3, "5.30 s"), (5.35 * 60, "5.35 min"), (7200, "2.00 h"),
         (3 * 86400, "3.00 days"), (1e9, "11 574 days")],
    )  # fmt: skip
    def test_duration(self, seconds, shown):
        assert style.duration(seconds) == shown

    @pytest.mark.parametrize(
        ("pflops", "unit"),
        [(12.0, ("P", 1.0)), (0.4, ("T", 1e3)), (1.3e-7, ("G", 1e6)), (0.0, ("G", 1e6))],
    )
    def test_training_is_shown_in_a_unit_that_suits_it(self, pflops, unit):
        assert style.operations_unit(pflops) == unit

    def test_fit_keeps_to_one_printable_line_and_both_ends(self):
        assert text.fit("a\n b\t深", 9, 8) == "a b ?"
        short = text.fit("a_task_with_a_long_name_1", 1.0, 8)
        assert short.startswith("a_task")
        assert short.endswith("_1")
        assert "…" in short
        assert text.text_width(short, 8) <= 1.0

    def test_wrap_leaves_nothing_out(self):
        words = "every one of these words, and_a_very_long_one_that_is_wider_than_a_line, +1.5 %"
        lines = text.wrap(words, 1.2, 8)
        assert "".join("".join(lines).split()) == "".join(words.split())
        assert all(text.text_width(line, 8) <= 1.2 for line in lines)
        assert not any(line.startswith("%") for line in lines)

    @pytest.mark.parametrize(
        ("low", "high"),
        [(3.0, 3.02), (0.12, 0.39), (2.1, 4.9), (1e-3, 1e3), (0.01, 10.0), (7, 7.5)],
    )
    def test_a_logarithmic_axis_always_has_ticks(self, low, high):
        axes = Figure().add_subplot()
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        style.set_ticks(axes.xaxis, 1.5, log=True)
        ticks = [t for t in axes.xaxis.get_majorticklocs() if low <= t <= high]
        assert 2 <= len(ticks) <= 8
        texts = axes.xaxis.get_major_formatter().format_ticks(ticks)
        assert len(set(texts)) == len(ticks)
        assert [float(shown) for shown in texts] == pytest.approx(ticks)

    @pytest.mark.parametrize(
        ("values", "shown"),
        [
            ([0, 0.25, 0.5], ["0.00", "0.25", "0.50"]),
            ([-2, 0, 2], ["−2", "0", "2"]),
            ([1e8, 2e8], ["1e8", "2e8"]),
        ],
    )
    def test_ticks_are_plain_numbers(self, values, shown):
        axes = Figure().add_subplot()
        style.set_ticks(axes.yaxis, 1.5)
        assert axes.yaxis.get_major_formatter().format_ticks(values) == shown


def test_what_one_task_costs_is_told_with_its_share() -> None:
    study = record(trials=3, failed=(), tasks=("semseg", "depth"))
    costs = {"semseg": 0.5, "depth": 0.25, "semseg+depth": 1.0}
    trials = tuple(
        dataclasses.replace(t, task_gflops={k: share * t.gflops for k, share in costs.items()})
        for t in study.trials[:2]
    )
    (page,) = pages(task_costs, dataclasses.replace(study, trials=(*trials, *study.trials[2:])))
    texts = [text.get_text() for text in page.texts]
    for told in ("all tasks", "semseg + depth"):
        assert told in texts
    shares = [text.rpartition(" · ")[2] for text in texts if " · " in text]
    assert shares == ["50 %", "25 %", "100 %"] * (len(shares) // 3)
    assert len(shares) >= 3
