"""The whole bench on a small set: the rows, the files, the sentences."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from engine.errors import ConfigError, SetupError
from engine.settings import Settings
from tests.test_cli import mindstream
from tests.trainer.offline.builders import write
from trainer.offline.options import BenchOptions
from trainer.offline.plots import check_plots
from trainer.offline.run import load_set, run_bench
from trainer.offline.splits import Split
from trainer.progress import Display

ROOT = Path(__file__).parents[3]


def parted_text() -> Iterator[str]:
    """Users like rows 1 to 8 or 9 to 16."""
    random = np.random.default_rng(4)
    for user in range(200):
        part = "train" if user < 160 else "valid" if user < 180 else "test"
        rows = random.permutation(np.arange(1, 9) + 8 * (user % 2))[: random.integers(5, 9)]
        yield f"{part} {' '.join(map(str, rows))}\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "tastes.txt", "".join(parted_text()))


def options_for(data: Path, **changes: object) -> BenchOptions:
    options = BenchOptions(str(data), data.parent, Split.COMIREC, max_seconds=1.0, threads=1)
    return replace(options, **changes)


def quiet() -> Console:
    return Console(quiet=True)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("out")
    options = options_for(
        data, interests=(1, 2), seeds=(1, 2), json=folder / "out.json", export=folder / "v.npz", command=("mindstream",)
    )

    rows = run_bench(Settings(cache_dir=folder / "cache"), options, console=quiet())

    return {"rows": rows, "folder": folder, "json": json.loads((folder / "out.json").read_text())}


def test_every_method_is_a_row_of_the_same_questions(whole: dict[str, object]) -> None:
    names = [row.name for row in whole["rows"]]

    assert names == [
        "popular",
        "item-CF",
        "user-CF",
        "EASE",
        "single vector",
        "two-tower",
        "recommended K=1",
        "recommended K=2",
    ]
    assert {len(row.mean("excluded")["recall_at_50"]) for row in whole["rows"]} == {20}


def test_the_json_holds_every_figure_with_its_error_and_the_differences(whole: dict[str, object]) -> None:
    found = whole["json"]
    model = found["methods"][-1]

    assert (found["command"], found["judged_on"], found["questions"], found["items"]) == ("mindstream", "test", 20, 16)
    assert set(model["excluded"]["recall_at_20"]) == {"mean", "standard_error"}
    assert set(model["against"]) == {method["name"] for method in found["methods"][:-1]}
    assert len(model["recall_at_50_by_run"]) == 2
    assert {"interest_cosine", "interests_used_share", "interests_in_top_50"} <= set(model["more"])
    assert sum(group["questions"] for group in found["recall_at_50_by_history_length"]) == 20


def test_a_difference_to_a_baseline_is_that_of_the_means(whole: dict[str, object]) -> None:
    methods = {method["name"]: method for method in whole["json"]["methods"]}
    model = methods["recommended K=2"]

    difference = model["against"]["popular"]["recall_at_20"]["mean"]

    means = [methods[name]["excluded"]["recall_at_20"]["mean"] for name in ("recommended K=2", "popular")]
    assert difference == pytest.approx(means[0] - means[1])


def test_the_export_is_of_the_first_model(whole: dict[str, object]) -> None:
    with np.load(whole["folder"] / "v.npz", allow_pickle=False) as found:
        assert found["user_vectors"].shape == (20, 1, 128)
        assert found["item_ids"].tolist() == [""] + [str(row) for row in range(1, 17)]
        assert found["user_ids"].tolist() == [str(line) for line in range(181, 201)]


def test_one_seed_is_one_result(data: Path, tmp_path: Path) -> None:
    options = options_for(data, only="model", interests=(2,), seeds=(3,), max_seconds=60.0)
    settings = Settings(cache_dir=tmp_path)

    first, second = (run_bench(settings, options, console=quiet())[0] for _ in range(2))

    assert first.mean("excluded")["ndcg_at_50"].tolist() == second.mean("excluded")["ndcg_at_50"].tolist()


def test_valid_asks_the_valid_users_and_leaves_test_alone(data: Path, tmp_path: Path) -> None:
    options = options_for(data, only="model", valid=True, json=tmp_path / "out.json", export=tmp_path / "v.npz")

    run_bench(Settings(cache_dir=tmp_path), options, console=quiet())

    with np.load(tmp_path / "v.npz", allow_pickle=False) as found:
        assert found["user_ids"].tolist() == [str(line) for line in range(161, 181)]
    assert json.loads((tmp_path / "out.json").read_text())["judged_on"] == "valid"


def test_without_fields_and_profiles_the_model_sees_neither_and_the_categories_stay_for_the_figures(
    tmp_path: Path,
) -> None:
    write(tmp_path / "shop.inter", "user_id:token\titem_id:token\nu1\ta\nu1\tb\nu1\tc\nu2\ta\nu2\tb\nu2\tc\n")
    write(tmp_path / "shop.item", "item_id:token\tbrand:token\tgenre:token_seq\na\tx\told new\nb\tx\tnew\nc\ty\tnew\n")
    write(tmp_path / "shop.user", "user_id:token\tsex:token\nu1\tF\nu2\tM\n")
    options = BenchOptions(str(tmp_path), tmp_path, Split.NEXT_CLICK)

    made = load_set(options, Display(quiet()))
    bare = load_set(replace(options, without_fields=True, without_profiles=True), Display(quiet()))

    assert made.items["a"].features == {"brand": "x"}
    assert [dict(profile) for profile in made.train.profiles] == [{"sex": "F"}, {"sex": "M"}]
    assert bare.items == {}
    assert list(bare.train.profiles) == []
    assert [dict(question.profile) for question in bare.test] == [{}, {}]
    assert [bare.item_categories(row) for row in (1, 2, 3)] == [made.item_categories(row) for row in (1, 2, 3)]


def test_plots_are_pictures_with_something_on_them(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots are optional and matplotlib is not installed")
    options = options_for(data, only="model", interests=(1, 2), plots=tmp_path / "plots")

    run_bench(Settings(cache_dir=tmp_path), options, console=quiet())

    for name in ("recall_by_k.png", "recall_by_history_length.png"):
        content = (tmp_path / "plots" / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000


def test_without_matplotlib_plots_are_refused_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.offline.plots.find_spec", lambda name: None)

    with pytest.raises(SetupError, match=r"plots need matplotlib; run `pip install 'mindstream\[plots\]'`"):
        check_plots()


def test_an_export_without_a_model_is_refused(data: Path, tmp_path: Path) -> None:
    options = options_for(data, only="baselines", export=tmp_path / "v.npz")

    with pytest.raises(ConfigError, match="--export must be left out with --only baselines"):
        run_bench(Settings(cache_dir=tmp_path), options, console=quiet())


def test_a_narrow_terminal_is_shown_means_and_a_wide_one_errors_too(data: Path, tmp_path: Path) -> None:
    options = options_for(data, only="model", interests=(2,))
    shown = {}
    for width in (100, 200):
        console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
        run_bench(Settings(cache_dir=tmp_path), options, console=console)
        shown[width] = next(line for line in console.file.getvalue().splitlines() if "\u2502 recommended K=2" in line)

    assert "±" not in shown[100]
    assert "…" not in shown[100]
    assert "±" in shown[200]


def test_an_interrupted_run_ends_with_130_and_leaves_no_file(data: Path, tmp_path: Path) -> None:
    command = ["evaluate", "--data", str(data), "--split", "comirec", "--preset", "paper", "--only", "model"]
    files = ["--json", str(tmp_path / "out.json"), "--export", str(tmp_path / "v.npz")]
    environment = os.environ | {"MINDSTREAM_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "engine.cli", *command, *files, "--max-seconds", "100"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert any("paper K=4, seed 7" in line for line in process.stdout)

    process.send_signal(signal.SIGINT)
    _rest, errors = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--data", "no-such-set", "--split", "comirec"], 2, "--data must be a path, or a name under"),
        (["--data", "tastes.txt", "--split", "time"], 2, "--split must be comirec for tastes"),
        (["--data", "tastes.txt", "--split", "comirec", "--extractor", "x"], 2, "extractor"),
        (["--data", "tastes.txt", "--split", "comirec", "--seed", "1", "--seeds", "2"], 2, "--seeds must be"),
        (["--data", "tastes.txt", "--split", "comirec", "--max-seconds", "inf"], 2, "--max-seconds must be a number"),
        (["--data", "empty.txt", "--split", "comirec"], 1, "empty.txt: is empty; give a file with"),
        (["--data", "bad.txt", "--split", "comirec"], 1, "line 1 has item row 0"),
    ],
)
def test_bad_input_is_one_sentence_and_an_exit_code(data: Path, arguments: list[str], code: int, sentence: str) -> None:
    write(data.parent / "empty.txt", "")
    write(data.parent / "bad.txt", "train 0 1\ntest 1 2\n")

    answer = mindstream("evaluate", "--only", "model", *arguments, folder=data.parent)

    assert answer.returncode == code, answer.stderr
    assert sentence in answer.stderr
    assert "Traceback" not in answer.stderr
