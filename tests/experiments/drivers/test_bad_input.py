"""What is the user's to mend is one line and a status."""

import subprocess

import pytest

from experiments.runtime import launch
from helpers.driver_runs import SMALL


@pytest.mark.parametrize(
    ("flags", "status", "says"),
    [
        ("--learner=mamml", 2, "--learner=mamml is unknown; did you mean maml"),
        ("--model=conv5", 2, "--model=conv5 is unknown; did you mean conv4"),
        ("--wayz=5", 2, "--wayz is not a flag; did you mean ways"),
        ("--ways=0", 2, "--ways=0 is too small; use 2 or more"),
        ("--shots=-1", 2, "--shots=-1 is too small"),
        ("--inner_lr=nan", 2, "--inner_lr=nan is not a finite number"),
        ("--steps=many", 2, "--steps=many"),
        ("--min_shots=3", 2, "--min_shots=3 is more than --shots=1"),
        ("--augment=blur", 2, "--augment=blur is unknown"),
        (
            "--model=mlp --norm=group",
            2,
            "--norm=group does not go with --model=mlp; it is for conv4",
        ),
        ("--seed=4294967296", 2, "--seed=4294967296 is too large; use 4294967295 or less"),
        ("--patience=3 --eval_every=0", 2, "--patience=3 does not go with --eval_every=0"),
        ("--learner=meta_sgd --inner_optimizer=adam", 2, "does not go with --learner=meta_sgd"),
        ("--rank=4", 2, "--rank=4 does not go with --learner=maml; it is for lora"),
        (
            "--learner=imaml --adjoint=mixed",
            2,
            "--adjoint=mixed does not go with --learner=imaml; it is for maml",
        ),
        ("--outer=reptile --first_order_steps=9", 2, "does not go with --outer=reptile"),
        ("--multi_step_loss=9", 2, "--multi_step_loss=9 does not go with --inner_steps=1"),
        ("--outer_lr_end=1", 2, "--outer_lr_end=1 is more than --outer_lr=0.002"),
        (
            "--learner=imaml --solver=identity --damping=1",
            2,
            "--damping=1.0 does not go with --solver=identity",
        ),
        ("--min_shots=3 --train_shots=2", 2, "--min_shots=3 is more than --train_shots=2"),
        ("--split=file", 2, "--split=file needs --split_file"),
        ("--split=random --split_file=x.json", 2, "takes no --split_file"),
        ("--dataset=glyphs --rotations=all", 2, "does not go with --dataset=glyphs"),
        ("--dataset=symbols --rotations=all", 2, "does not go with --dataset=symbols"),
        ("--dataset=glyphs --image_size=3", 1, "image_size is 3 pixels, too small"),
        (
            "--dataset=cifar100 --data_dir=/nowhere",
            1,
            "tensorflow-datasets importlib_resources && python -c",
        ),
        ("--steps=100000000000", 2, "--steps=100000000000 is too large"),
        ("ways=5", 2, "'ways=5' is not a flag"),
        ("--flagfile=nowhere.flags", 2, "nowhere.flags"),
        ("--dataset=omniglott", 1, "omniglot"),
        ("--ways=13", 1, "13 ways are more than the"),
        (
            "--shots=5 --queries=4",
            1,
            "need 9 images per class, but 13 of the 13 classes of train have",
        ),
        ("--mode=evaluate", 1, "no checkpoint to evaluate"),
        ("--adjoint=mixt", 2, "--adjoint=mixt is unknown; did you mean mixed"),
        (
            "--tasks_at_once=0",
            2,
            "--tasks_at_once=0 is not a number of tasks; use 1 or more, or auto",
        ),
        ("--tasks_at_once=all", 2, "--tasks_at_once=all is not a number of tasks"),
        ("--tasks_at_once=-2", 2, "--tasks_at_once=-2 is not a number of tasks"),
        ("--precision=float16", 2, "--precision=float16 is unknown; did you mean"),
        ("--queries_at_once=-1", 2, "--queries_at_once=-1 is too small"),
        ("--queries_at_once=4", 2, "=4 does not go with --norm=batch"),
    ],
)
def test_bad_input_is_one_line_and_a_status(forked, pictures, tmp_path, flags, status, says):
    defaults = ["--dataset=folder", f"--data_dir={pictures}", f"--workdir={tmp_path}", "--ways=3"]
    defaults += ["--test_queries=3"]
    measured, out, err = forked(*defaults, *flags.split())
    assert measured == status, err
    assert says in err
    assert len(err.strip().splitlines()) == 1
    assert "step/s" not in out


def test_an_error_is_printed_as_one_short_line_without_control_characters(capsys):
    for said in ("\x1b[2J\x07 and\nmore", OSError(2, "no file", "\x1b[2J" * 1_000_000)):
        with pytest.raises(SystemExit):
            launch._fail(said, 2)
        printed = capsys.readouterr().err
        assert printed.startswith("error: ") and printed.endswith("\n")
        assert printed[:-1].isprintable() and len(printed) < 5000


def test_an_unwritable_workdir_is_refused(forked, pictures, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, err = forked(
        *SMALL, f"--data_dir={pictures}", f"--workdir={tmp_path / 'file' / 'x'}"
    )
    assert status == 2 and "cannot be written" in err and len(err.strip().splitlines()) == 1


def test_a_broken_image_is_named(forked, pictures, tmp_path):
    root = tmp_path / "pictures"
    subprocess.run(["cp", "-r", pictures, root], check=True)
    (root / "class03" / "2.png").write_bytes(b"no image")
    status, _, err = forked(
        "--dataset=folder", f"--data_dir={root}", f"--workdir={tmp_path / 'run'}"
    )
    assert status == 1 and str(root / "class03" / "2.png") in err
