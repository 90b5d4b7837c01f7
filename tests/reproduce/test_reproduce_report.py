"""The table and the picture of runs, from folders as training writes them."""

import io
import json
import math
import re

import pytest
from PIL import Image

from benchmarks.datafile import BadFile
from benchmarks.reproduce import finished, published, report

CONFIG = {
    "dataset": "cifar10",
    "network": "preactresnet18",
    "method": "manifold-mixup",
    "alpha": 2.0,
    "layers": ["", "layer1", "layer2"],
    "seed": 0,
    "epochs": 1200,
    "batch": 100,
}
LOG = "epoch,lr,train_loss,train_accuracy,test_nll,test_error,test_top5_error,seconds\n"


def write_run(folder, error=3.0, nll=0.15, top5=None, robustness=None, done=True, **config):
    config = CONFIG | config
    place = folder / f"run-{len(list(folder.iterdir()))}"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(config))
    last = "" if top5 is None else top5
    lines = [f"1,0.1,2.0,20.0,1.9,{error + 50},{last},1", f"2,0.1,1.0,50.0,{nll},{error},{last},1"]
    (place / "log.csv").write_text(LOG + "\n".join(lines) + "\n")
    if done:
        result = {"config": config, "test_error": error, "test_nll": nll}
        result |= {"test_top5_error": top5, "robustness": robustness}
        (place / "result.json").write_text(json.dumps(result))
    return place


def table_of(folder) -> str:
    return report.table(finished.read_runs(folder), published.read())


def cells(text: str, word: str) -> list[str]:
    """Those of the first line of a table that has the word."""
    line = next(line for line in text.splitlines() if line.startswith("|") and word in line)
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_mean_and_standard_error_stand_beside_the_numbers_of_the_paper(tmp_path):
    for seed, error in enumerate((2.0, 3.0, 4.0)):
        write_run(tmp_path, error=error, nll=0.1 * error, seed=seed)
    text = table_of(tmp_path)
    assert cells(text, "network") == [
        "network",
        "method",
        "alpha",
        "layers",
        "epochs",
        "seeds",
        "test error %",
        "paper's test error %",
        "test NLL",
        "paper's test NLL",
    ]
    assert cells(text, "manifold-mixup") == [
        "preactresnet18",
        "manifold-mixup",
        "2",
        "input, layer1, layer2",
        "1200",
        "3",
        f"3.00 ± {1 / math.sqrt(3):.2f}",
        "2.95 ± 0.046 (paper, Table 1a)",
        f"0.300 ± {0.1 / math.sqrt(3):.3f}",
        "0.137 ± 0.003 (paper, Table 1a)",
    ]
    assert "arXiv:1806.05236v7, ± standard deviation over five runs" in text
    assert "Table 3 prints accuracies" in text
    assert not any(w in text for w in ("Fewer", "accuracy %", "Not finished", "1,000 images"))


def test_one_seed_has_no_error_and_a_method_of_ours_no_number_of_the_paper(tmp_path):
    write_run(tmp_path, method="erm", alpha=None, layers=[])
    write_run(tmp_path, method="cutmix", alpha=1.0, layers=[])
    text = table_of(tmp_path)
    assert cells(text, "erm")[2:8] == [
        "",
        "",
        "1200",
        "1",
        "3.00",
        "4.83 ± 0.066 (paper, Table 1a)",
    ]
    assert cells(text, "cutmix")[6:] == ["3.00", "", "0.150", ""]


def test_top_5_errors_of_tiny_imagenet(tmp_path):
    write_run(tmp_path, dataset="tiny-imagenet", alpha=0.2, error=45.0, top5=30.0, epochs=2000)
    assert cells(table_of(tmp_path), "manifold-mixup")[6:] == [
        "45.00",
        "41.30 (paper, Table 3)",
        "0.150",
        "",
        "30.00",
        "26.41 (paper, Table 3)",
    ]
    write_run(tmp_path, dataset="tiny-imagenet", alpha=0.2, seed=1, epochs=2000)
    assert "top-5" not in table_of(tmp_path)


def test_shorter_runs_are_named(tmp_path):
    write_run(tmp_path, epochs=20)
    write_run(tmp_path, method="erm", alpha=None, epochs=1200)
    text = table_of(tmp_path)
    assert "Fewer epochs than the paper's: preactresnet18 manifold-mixup 20 of 1200." in text


def test_settings_without_a_column_are_named_where_they_differ(tmp_path):
    write_run(tmp_path, batch=100)
    write_run(tmp_path, batch=50, error=5.0)
    write_run(tmp_path, network="wideresnet28-10", batch=25)
    text = table_of(tmp_path)
    assert cells(text, "batch 50")[6] == "5.00" and cells(text, "batch 100")[6] == "3.00"
    assert cells(text, "wide")[1] == "manifold-mixup"


def test_sets_have_tables_of_their_own_in_order_of_methods(tmp_path):
    for dataset in ("svhn", "cifar10"):
        for method, alpha in (("manifold-mixup", 2.0), ("erm", None)):
            write_run(tmp_path, dataset=dataset, method=method, alpha=alpha)
    text = table_of(tmp_path)
    assert re.findall("## (.*)", text) == ["cifar10", "svhn"]
    assert re.findall(r"\| preactresnet18 \| ([\w-]+)", text) == 2 * ["erm", "manifold-mixup"]
    assert "2.27 ± 0.011 (paper, Table 2)" in text


def test_robustness_of_the_runs_that_have_it(tmp_path):
    some = {"clean": 80.0, "shear 57.3": 40.0, "FGSM 0.03": 10.0}
    deformed = {"dataset": "cifar100", "network": "preactresnet34"}
    write_run(tmp_path, robustness=some, **deformed)
    write_run(tmp_path, robustness=some | {"shear 57.3": 44.0}, seed=1, **deformed)
    write_run(tmp_path, seed=2, **deformed)
    write_run(tmp_path, method="cutmix", alpha=1.0, **deformed)
    text = table_of(tmp_path)
    head = ["accuracy %", "preactresnet34 manifold-mixup", "paper's"]
    assert cells(text, "accuracy %") == head
    assert cells(text, "shear") == ["shear 57.3", "42.00 ± 2.00", "44.27 (paper, Table 4)"]
    assert cells(text, "FGSM") == ["FGSM 0.03", "10.00 ± 0.00", ""]
    assert "The unbounded attack is of 1,000 images at most." in text


def test_where_there_is_no_column_runs_of_one_method_are_told_apart(tmp_path, monkeypatch):
    for alpha, layers, epochs in ((0.5, [""], 20), (2.0, ["", "layer1"], 20), (2.0, [""], 40)):
        some = {"alpha": alpha, "layers": layers, "epochs": epochs}
        write_run(tmp_path, robustness={"clean": 80.0}, **some)
    write_run(tmp_path, method="erm", alpha=None, layers=[], epochs=20)
    mixed = "preactresnet18 manifold-mixup, alpha "
    rest = ("0.5, layers input, epochs 20", "2, layers input, epochs 40")
    names = [mixed + rest[0], mixed + "2, layers input, layer1, epochs 20", mixed + rest[1]]
    assert cells(table_of(tmp_path), "accuracy %")[1::2] == names
    drawn = lines_of(finished.read_runs(tmp_path), monkeypatch)
    assert [name for _, name, _ in drawn[::2]] == ["preactresnet18 erm", *names]
    assert cells(table_of(tmp_path), "0.5")[1:5] == ["manifold-mixup", "0.5", "input", "20"]


def test_unfinished_runs_are_named_and_drawn(tmp_path):
    write_run(tmp_path)
    write_run(tmp_path, seed=1, done=False)
    text = table_of(tmp_path)
    assert "Not finished: run-1." in text
    assert cells(text, "manifold-mixup")[5] == "1"


def test_only_unfinished_runs(tmp_path):
    write_run(tmp_path, done=False)
    assert "Not finished" in table_of(tmp_path) and "|" not in table_of(tmp_path)


def lines_of(runs, monkeypatch):
    """Every line that plot draws, as (panel's title, label, heights)."""
    drawn = []

    def keep(figure):
        for panel in figure.axes:
            for line in panel.lines:
                drawn.append((panel.get_title(), line.get_label(), list(line.get_ydata())))
        return b""

    monkeypatch.setattr(report.plots, "png", keep)
    report.plot(runs)
    return drawn


def test_the_picture_has_a_mean_for_each_group_and_a_line_for_each_run(tmp_path, monkeypatch):
    write_run(tmp_path, error=2.0)
    write_run(tmp_path, error=4.0, seed=1)
    longer = write_run(tmp_path, error=6.0, seed=2)
    with (longer / "log.csv").open("a") as log:
        log.write("3,0.1,1.0,50.0,0.1,9.0,,1\n")
    write_run(tmp_path, dataset="svhn", error=1.0)
    drawn = lines_of(finished.read_runs(tmp_path), monkeypatch)
    titles = [title for title, *_ in drawn]
    assert titles == 4 * ["cifar10"] + 2 * ["svhn"]
    assert drawn[0][1:] == ("preactresnet18 manifold-mixup", [54.0, 4.0])
    assert [heights for *_, heights in drawn[1:4]] == [[52.0, 2.0], [54.0, 4.0], [56.0, 6.0, 9.0]]


def test_main_writes_both_files_and_writes_its_own_again(tmp_path, capsys):
    write_run(tmp_path)
    report.main(tmp_path)
    table, picture = tmp_path / "table.md", tmp_path / "plot.png"
    assert capsys.readouterr().out == f"written: {table}, {picture}\n"
    assert table.read_text().startswith(report.MARK) and "2.95" in table.read_text()
    assert Image.open(io.BytesIO(picture.read_bytes())).size[0] > 300
    write_run(tmp_path, seed=1, error=5.0)
    report.main(tmp_path)
    assert "4.00 ± 1.00" in table.read_text()


@pytest.mark.parametrize("name", ["table.md", "plot.png"])
def test_main_overwrites_nothing_else(tmp_path, name):
    write_run(tmp_path)
    (tmp_path / name).write_text("mine")
    with pytest.raises(BadFile, match=rf"{name} must be a report of these runs, or absent"):
        report.main(tmp_path)
    assert (tmp_path / name).read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2


def remove_key(path, key):
    data = json.loads(path.read_text())
    del data[key]
    path.write_text(json.dumps(data))


DAMAGES = {
    "config damaged": (
        lambda run: (run / "config.json").write_text("{"),
        r"config.json must be the JSON file of a run, but is damaged \(Expecting",
    ),
    "config of something else": (
        lambda run: (run / "config.json").write_text("[]"),
        "config.json must be of a run, but lacks alpha, dataset, epochs, layers and 3 more",
    ),
    "config lacks a key": (
        lambda run: remove_key(run / "config.json", "layers"),
        "config.json must be of a run, but lacks layers$",
    ),
    "result lacks a key": (
        lambda run: remove_key(run / "result.json", "test_nll"),
        "result.json must be of a run, but lacks test_nll",
    ),
    "no log": (
        lambda run: (run / "log.csv").unlink(),
        "log.csv must be the log of a run, with epoch and test_error in each line",
    ),
    "log of other columns": (
        lambda run: (run / "log.csv").write_text("a,b\n1,2\n"),
        "log.csv must be the log of a run",
    ),
    "log cut short": (
        lambda run: (run / "log.csv").write_text(LOG + "1,0.1,2\n"),
        "log.csv must be the log of a run",
    ),
    "log of words": (
        lambda run: (run / "log.csv").write_text(LOG + "1,0.1,2,3,4,none,,\n"),
        "log.csv must be the log of a run",
    ),
    "the same run twice": (
        lambda run: (
            run.with_name("copy").mkdir()
            or [
                run.with_name("copy").joinpath(f.name).write_text(f.read_text())
                for f in run.iterdir()
            ]
        ),
        "must hold a run once, but copy and run-0 have the same",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_of_damaged_runs_is_refused(tmp_path, damage):
    harm, message = DAMAGES[damage]
    harm(write_run(tmp_path))
    with pytest.raises(BadFile, match=message):
        report.main(tmp_path)
    assert not (tmp_path / "table.md").exists()


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(BadFile, match="nowhere must be a folder of runs, but is not a folder"):
        report.main(tmp_path / "nowhere")
    (tmp_path / "note.txt").touch()
    words = "must hold folders of runs, each with config.json, but has note.txt"
    with pytest.raises(BadFile, match=words):
        report.main(tmp_path)
