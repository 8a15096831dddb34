import contextlib
import functools
import resource

import pytest

from p2p.errors import StorageError
from p2p.model.checkpoint import load_generator, load_trainer, save_checkpoint
from p2p.model.config import ModelConfig
from p2p.model.pix2pix import Pix2Pix
from p2p.storage.filesystems import exists, remove, write_json
from p2p.storage.lease import hold_lease
from p2p.training.position import Position
from p2p.training.run_folder import RunFolder


def row(epoch: int) -> dict:
    return {"epoch": epoch, "step": 10 * epoch, "val_l1": 1.0 / epoch}


def save(folder: RunFolder, tmp_path, epoch: int, *, best: bool, keep: int) -> str:
    name = folder.new_checkpoint(epoch, 10 * epoch)
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / "meta.json").write_text("{}")
    folder.publish(name, row(epoch), is_best=best, keep=keep)
    return name


def checkpoints(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_pruning_never_takes_the_best_or_the_latest(tmp_path, keep):
    folder = RunFolder(str(tmp_path))
    for epoch in range(1, 8):
        save(folder, tmp_path, epoch, best=epoch == 2, keep=keep)
        present = checkpoints(tmp_path)
        for entry in (folder.best(), folder.latest()):
            assert entry is None or entry["checkpoint"].removeprefix("checkpoints/") in present
    assert checkpoints(tmp_path) == ["epoch_0002", *(f"epoch_{epoch:04d}" for epoch in range(8 - keep, 8))]


def test_a_checkpoint_that_is_removed_in_part_is_none(tmp_path, monkeypatch):
    """Readers of a run that goes on must not take what is left of it for whole."""
    folder = RunFolder(str(tmp_path))
    for epoch in (1, 2):
        save(folder, tmp_path, epoch, best=epoch == 2, keep=0)
    (tmp_path / "checkpoints" / "epoch_0001" / "generator.safetensors").write_bytes(b"weights")
    monkeypatch.setattr("p2p.training.run_folder.remove", functools.partial(remove_until, "epoch_0001"))
    with pytest.raises(KeyboardInterrupt):
        folder.publish("checkpoints/epoch_0002", row(2), is_best=True, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints" / "epoch_0001").iterdir()] == ["generator.safetensors"]


def test_zero_keeps_every_checkpoint(tmp_path):
    folder = RunFolder(str(tmp_path))
    for epoch in range(1, 6):
        save(folder, tmp_path, epoch, best=True, keep=0)
    assert len(checkpoints(tmp_path)) == 5


def test_a_checkpoint_that_is_referred_to_is_never_written_over(tmp_path):
    folder = RunFolder(str(tmp_path))
    first = save(folder, tmp_path, 3, best=True, keep=3)
    assert first == "checkpoints/epoch_0003"
    assert folder.new_checkpoint(3, 35) == "checkpoints/epoch_0003_step_00000035"
    assert (tmp_path / first / "meta.json").exists()


def test_step_checkpoints_are_ordered_by_time_and_other_files_are_left_alone(tmp_path):
    folder = RunFolder(str(tmp_path))
    (tmp_path / "checkpoints" / "mine").mkdir(parents=True)
    names = []
    for epoch, step in ((1, 4), (1, 8), (1, 10), (2, 14), (2, 18), (2, 20)):
        name = folder.new_checkpoint(epoch, step, inside_epoch=step % 10 != 0)
        (tmp_path / name).mkdir(parents=True)
        folder.publish(name, {"epoch": epoch, "step": step}, is_best=step == 4, keep=2)
        names.append(name.removeprefix("checkpoints/"))
        assert set(checkpoints(tmp_path)) == {names[0], *names[-2:], "mine"}
    assert names[1:4] == ["epoch_0001_step_00000008", "epoch_0001", "epoch_0002_step_00000014"]


def test_what_a_killed_writer_left_is_cleared(tmp_path):
    folder = RunFolder(str(tmp_path))
    save(folder, tmp_path, 1, best=True, keep=3)
    orphan = tmp_path / "checkpoints" / "epoch_0002"
    orphan.mkdir()
    (orphan / "generator.safetensors").write_bytes(b"half")
    assert folder.new_checkpoint(2, 20) == "checkpoints/epoch_0002"
    assert not orphan.exists()


def test_rows_after_the_checkpoint_are_dropped_on_reading(tmp_path):
    folder = RunFolder(str(tmp_path))
    assert folder.rows() == []
    folder.write_rows([row(1), row(2), row(3)])
    assert folder.rows(up_to_epoch=2) == [row(1), row(2)]


def test_deleting_a_run_leaves_other_files_alone(tmp_path):
    folder = RunFolder(str(tmp_path))
    folder.start({"seed": 1})
    save(folder, tmp_path, 1, best=True, keep=3)
    folder.finish({"epochs": 1})
    (tmp_path / "notes.txt").write_text("mine")
    delete(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert folder.config() is None


def test_a_run_that_was_deleted_in_part_is_a_run_to_be_deleted(tmp_path, monkeypatch):
    """What is left of it must not be taken for the next run's."""
    folder = RunFolder(str(tmp_path))
    folder.start({"seed": 1})
    save(folder, tmp_path, 1, best=True, keep=3)
    names = sorted(path.name for path in tmp_path.iterdir())
    for name in names:  # killed before any one of them
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr("p2p.training.run_folder.remove", functools.partial(remove_until, name))
            delete(folder)
        assert folder.config() == {"seed": 1} or not list(tmp_path.iterdir())
    delete(folder)
    assert not list(tmp_path.iterdir())


def test_what_a_link_in_a_run_leads_to_is_not_deleted_with_it(tmp_path):
    others = tmp_path / "others"
    (others / "epoch_0001").mkdir(parents=True)
    (others / "epoch_0001" / "meta.json").write_text("{}")
    folder = RunFolder(str(tmp_path / "run"))
    folder.start({"seed": 1})
    (tmp_path / "run" / "checkpoints").symlink_to(others)
    folder.write_sample("epoch_0001", b"png")
    (tmp_path / "run" / "samples" / "linked").symlink_to(others)
    delete(folder)
    assert not (tmp_path / "run" / "samples").exists() and folder.config() is None
    assert (others / "epoch_0001" / "meta.json").exists()


def delete(folder: RunFolder) -> None:
    with hold_lease(folder.uri, "output", "train") as fence:
        folder.delete(fence)


def remove_until(name: str, uri: str) -> None:
    if uri.endswith(f"/{name}"):
        raise KeyboardInterrupt
    remove(uri)


def test_a_run_that_goes_on_is_no_longer_finished(tmp_path):
    folder = RunFolder(str(tmp_path))
    folder.start({})
    folder.finish({"epochs": 1})
    assert folder.summary() == {"epochs": 1}
    folder.start({})
    assert folder.summary() is None


def test_a_save_that_the_disk_cuts_short_leaves_the_checkpoint_before_it(tmp_path):
    """The operating system itself refuses to write on, in the middle of a file, as on a full disk."""
    model = Pix2Pix(ModelConfig(generator="unet_64", discriminator="patch_16", crop_size=64, ngf=4, ndf=4))
    folder = RunFolder(str(tmp_path))

    def save_epoch(epoch: int) -> None:
        name = folder.new_checkpoint(epoch, 10 * epoch)
        save_checkpoint(folder.address(name), model, {"epoch": epoch}, Position(epoch).to_dict())
        folder.publish(name, row(epoch), is_best=True, keep=1)

    save_epoch(1)
    good = load_generator(str(tmp_path)).checkpoint_id
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StorageError, match=r"epoch_0002/\w+\.safetensors: larger than a file may be there"):
            save_epoch(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert folder.latest()["checkpoint"] == folder.best()["checkpoint"] == "checkpoints/epoch_0001"
    assert load_generator(f"{tmp_path}#latest").checkpoint_id == good
    assert load_trainer(folder.address("checkpoints/epoch_0001"), model)["epoch"] == 1
    save_epoch(2)
    assert checkpoints(tmp_path) == ["epoch_0002"] and not list(tmp_path.rglob(".p2p-*"))


def test_a_kill_between_the_two_names_loses_no_best_checkpoint(tmp_path, monkeypatch):
    folder = RunFolder(str(tmp_path))
    save(folder, tmp_path, 1, best=True, keep=1)

    def killed_before_latest(uri, document):
        if uri.endswith("latest.json"):
            raise KeyboardInterrupt
        write_json(uri, document)

    monkeypatch.setattr("p2p.training.run_folder.write_json", killed_before_latest)
    with pytest.raises(KeyboardInterrupt):
        save(folder, tmp_path, 2, best=True, keep=1)
    monkeypatch.undo()
    assert (folder.best()["epoch"], folder.latest()["epoch"]) == (2, 1)
    again = save(folder, tmp_path, 2, best=False, keep=1)  # as good as the one that was saved, so no better
    save(folder, tmp_path, 3, best=False, keep=1)
    assert folder.best()["epoch"] == 2 and folder.best()["checkpoint"] != again
    assert exists(folder.address(folder.best()["checkpoint"])), "pruning leaves the best"
