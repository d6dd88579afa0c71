import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from imagery2flow.encoder import embeddings
from imagery2flow.encoder.checkpoint import load_encoder
from imagery2flow.encoder.embeddings import EmbeddingJob, embed_and_keep, embed_chunk, make_embeddings
from imagery2flow.encoder.features import embed
from imagery2flow.imagery.patch_files import PatchFiles, find_patches, load_patches
from imagery2flow.imagery.pyramid import build_pyramid
from imagery2flow.imagery.views import embedding_views
from imagery2flow.run.config import EmbeddingConfig
from imagery2flow.run.errors import InputError, MissingInputError
from imagery2flow.run.stage import run_stage

from .conftest import BANDS, draw_images, write_patches


@pytest.fixture
def folder(tmp_path):
    """Seven patches of sizes 7 to 22, of another draw than the encoder was trained on."""
    return write_patches(tmp_path / "patches", draw_images(7, seed=3))


def make_table(trained, folder, output, ledger, **changes):
    config = EmbeddingConfig(data_path=str(folder), output_path=str(output), ckpt=trained.checkpoint, device="cpu", **changes)
    make_embeddings(config, ledger)
    return pd.read_csv(output, dtype={"geocode": str}, index_col="geocode")


def test_the_table_has_sorted_text_ids_and_numbered_columns(trained, folder, tmp_path, ledger):
    table = make_table(trained, folder, tmp_path / "out.csv", ledger)
    assert table.index.tolist() == ["00000", "00001", "00002", "00003", "00004", "00005", "00006"]
    assert table.columns.tolist() == [*map(str, range(512)), *(f"{band}_{kind}" for kind in ("mean", "std") for band in BANDS)]
    assert np.isfinite(table.to_numpy()).all()
    assert ledger.came_in == {"patches": 7}
    assert ledger.went_out == {"embeddings": 7}


def test_each_vector_is_the_encoders_output_for_the_whole_patch_alone(trained, folder, tmp_path, ledger):
    table = make_table(trained, folder, tmp_path / "out.csv", ledger, band_statistics=False)
    encoder, record = load_encoder(Path(trained.checkpoint))
    patches = load_patches(str(folder), [], ledger)
    pyramid = build_pyramid(patches, record.normalisation, record.view_size)
    for position, geocode in enumerate(patches.geocodes):
        with torch.inference_mode():
            vector = encoder(embedding_views(pyramid, torch.tensor([position]), record.view_size))[0]
        np.testing.assert_allclose(table.loc[geocode].to_numpy(), vector.numpy(), atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_the_batch_size_does_not_change_the_vectors(trained, folder, ledger, batch_size):
    encoder, record = load_encoder(Path(trained.checkpoint))
    pyramid = build_pyramid(load_patches(str(folder), [], ledger), record.normalisation, record.view_size)
    whole, parts = (embed(encoder, pyramid, record.view_size, size) for size in (256, batch_size))
    assert whole.shape == (7, 512)
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_other_patches_in_the_folder_do_not_change_a_vector(trained, folder, tmp_path, ledger):
    images = draw_images(7, seed=3)
    alone = write_patches(tmp_path / "alone", {"00004": images["00004"]})
    together, single = (make_table(trained, path, tmp_path / f"{path.name}.csv", ledger) for path in (folder, alone))
    np.testing.assert_allclose(single.loc["00004"], together.loc["00004"], atol=1e-5)


def test_csv_and_parquet_hold_the_same(trained, folder, tmp_path, ledger):
    make_table(trained, folder, tmp_path / "out.csv", ledger)
    config = EmbeddingConfig(data_path=str(folder), output_path=str(tmp_path / "out.parquet"), ckpt=trained.checkpoint, device="cpu")
    make_embeddings(config, ledger)
    text = pd.read_csv(tmp_path / "out.csv", dtype={"geocode": str}, index_col="geocode").astype(np.float32)
    pd.testing.assert_frame_equal(text, pd.read_parquet(tmp_path / "out.parquet"), check_exact=True, check_index_type=False)


def test_the_named_columns_are_each_bands_mean_and_deviation_over_the_unit(trained, folder, tmp_path, ledger):
    table = make_table(trained, folder, tmp_path / "out.csv", ledger)
    _, record = load_encoder(Path(trained.checkpoint))
    normalisation = record.normalisation
    for geocode, image in draw_images(7, seed=3).items():
        for band in range(3):
            pixels = [
                (float(image[band, row, column]) - normalisation.mean[band]) / normalisation.std[band]
                for row in range(image.shape[1])
                for column in range(image.shape[2])
                if image[:, row, column].all()
            ]
            mean = sum(pixels) / len(pixels)
            deviation = (sum((pixel - mean) ** 2 for pixel in pixels) / len(pixels)) ** 0.5
            assert table.loc[geocode, f"{BANDS[band]}_mean"] == pytest.approx(mean, abs=1e-5)
            assert table.loc[geocode, f"{BANDS[band]}_std"] == pytest.approx(deviation, abs=1e-5)


def test_without_band_statistics_only_the_encoders_features_are_written(trained, folder, tmp_path, ledger):
    with_them = make_table(trained, folder, tmp_path / "with.csv", ledger)
    without = make_table(trained, folder, tmp_path / "without.csv", ledger, band_statistics=False)
    pd.testing.assert_frame_equal(without, with_them.iloc[:, :512], check_exact=True)


def test_the_order_of_files_and_manifest_rows_changes_nothing(trained, folder, tmp_path, ledger):
    images = draw_images(7, seed=3)
    turned = write_patches(tmp_path / "turned", dict(reversed(images.items())))
    bare = write_patches(tmp_path / "bare", dict(reversed(images.items())))
    (bare / "manifest.csv").unlink()
    for path in (folder, turned, bare):
        make_table(trained, path, tmp_path / f"{path.name}.csv", ledger)
    written = {(tmp_path / f"{path.name}.csv").read_bytes() for path in (folder, turned, bare)}
    assert len(written) == 1


def test_own_statistics_make_the_vectors_blind_to_the_scale(trained, tmp_path, ledger):
    images = draw_images(4)
    tenfold = {geocode: image * 10 for geocode, image in images.items()}
    folders = [write_patches(tmp_path / name, content) for name, content in (("one", images), ("ten", tenfold))]
    one, ten = (make_table(trained, path, f"{path}.csv", ledger, normalisation="patches") for path in folders)
    np.testing.assert_allclose(ten, one, atol=1e-3)


def test_an_unfinished_encoder_is_named(trained, folder, tmp_path, ledger):
    content = torch.load(trained.checkpoint, weights_only=True)
    content["config"]["total_epoch"] = 9
    del content["sha256"]
    torch.save(content, tmp_path / "unfinished.pth")
    config = EmbeddingConfig(
        data_path=str(folder), output_path=str(tmp_path / "out.csv"), ckpt="unfinished.pth", model_path=str(tmp_path), device="cpu"
    )
    make_embeddings(config, ledger)
    assert any("is unfinished: epoch 1 of 9" in note for note in ledger.notes)


def test_an_output_of_unknown_kind_is_refused_before_any_work(trained, tmp_path, ledger):
    config = EmbeddingConfig(data_path=str(tmp_path / "gone"), output_path=str(tmp_path / "out.xlsx"), ckpt=trained.checkpoint)
    with pytest.raises(InputError, match=r"--output_path .*out.xlsx must end in .csv"):
        make_embeddings(config, ledger)
    with pytest.raises(MissingInputError, match="gone is no folder"):
        make_embeddings(EmbeddingConfig(data_path=str(tmp_path / "gone"), output_path="out.csv", ckpt=trained.checkpoint), ledger)


def test_the_stage_writes_its_provenance_beside_the_table(trained, folder, tmp_path):
    config = EmbeddingConfig(data_path=str(folder), output_path=str(tmp_path / "out.csv"), ckpt=trained.checkpoint, device="cpu")
    assert run_stage("get_img_embedding", config, make_embeddings) == 0
    run = json.loads((tmp_path / "out.csv.run.json").read_text())
    assert run["config"]["ckpt"] == trained.checkpoint
    assert set(run["inputs_sha256"]) == {trained.checkpoint, str(folder / "manifest.csv")}
    assert any("columns 0..511 are the encoder's" in note for note in run["ledger"]["notes"])


@pytest.mark.parametrize("normalisation", ["checkpoint", "patches"])
@pytest.mark.parametrize("pixels", [1, 300, 10**9])
def test_chunks_of_any_size_give_the_same_table(trained, folder, tmp_path, ledger, monkeypatch, normalisation, pixels):
    whole = make_table(trained, folder, tmp_path / "whole.csv", ledger, normalisation=normalisation)
    monkeypatch.setattr(embeddings, "PIXELS_PER_CHUNK", pixels)
    parts = make_table(trained, folder, tmp_path / "parts.csv", ledger, normalisation=normalisation)
    pd.testing.assert_frame_equal(parts, whole, rtol=1e-5, atol=1e-5)


def test_a_chunk_without_a_valid_pixel_is_left_out_by_name(trained, tmp_path, ledger, monkeypatch):
    images = draw_images(4, seed=3)
    images["00002"][:] = 0
    monkeypatch.setattr(embeddings, "PIXELS_PER_CHUNK", 1)
    table = make_table(trained, write_patches(tmp_path / "patches", images), tmp_path / "out.csv", ledger)
    assert table.index.tolist() == ["00000", "00001", "00003"]
    assert ledger.left_out == {"patches without a valid pixel": ["00002"]}
    assert (ledger.came_in, ledger.went_out) == ({"patches": 4}, {"embeddings": 3})


def test_several_processes_give_the_table_of_one(trained, folder, tmp_path, ledger):
    one, two = (make_table(trained, folder, tmp_path / f"{workers}.csv", ledger, workers=workers) for workers in (1, 2))
    pd.testing.assert_frame_equal(two, one, rtol=1e-5, atol=1e-5)
    controls = [pd.read_csv(tmp_path / f"{workers}_untrained.csv", dtype={"geocode": str}) for workers in (1, 2)]
    pd.testing.assert_frame_equal(*controls, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("num_pixels", "workers", "sizes"),
    [([5, 5, 5, 5], 1, [4]), ([5] * 16, 2, [2] * 8), ([60, 30, 10], 4, [1, 1, 1]), ([1] * 10, 1, [4, 3, 3])],
)
def test_chunks_hold_every_patch_once_in_order(num_pixels, workers, sizes, tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "PIXELS_PER_CHUNK", 100)
    monkeypatch.setattr(embeddings, "PATCHES_PER_CHUNK", 4)  # a patch counts as 25 pixels at least
    geocodes = [f"{number:03d}" for number in range(len(num_pixels))]
    paths = dict.fromkeys(geocodes, tmp_path)
    files = PatchFiles(tmp_path, paths, dict(zip(geocodes, num_pixels, strict=True)), (1,), ("red",), True, "uint8")
    chunks = embeddings.make_chunks(files, EmbeddingConfig(data_path="unused", output_path="unused.csv", workers=workers))
    assert [geocode for chunk in chunks for geocode in chunk.paths] == geocodes
    assert [len(chunk.paths) for chunk in chunks] == [len(chunk.num_pixels) for chunk in chunks] == sizes


def killed_half_way(job, chunk_and_path):
    """Embeds patches, but the process that is the first to reach patch 00003 is killed when it has done so."""
    marker = Path(job.config.output_path).with_suffix(".killed")
    found = embed_and_keep(job, chunk_and_path)
    if "00003" in chunk_and_path[0].paths and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return found


@pytest.mark.parametrize("where", ["processes", "cluster"])
def test_a_killed_process_loses_no_vector_and_doubles_none(trained, folder, tmp_path, ledger, monkeypatch, request, where):
    alone = make_table(trained, folder, tmp_path / "alone.csv", ledger)
    monkeypatch.setattr(embeddings, "embed_and_keep", killed_half_way)
    dask = request.getfixturevalue("cluster").scheduler_address if where == "cluster" else None
    together = make_table(trained, folder, tmp_path / "together.csv", ledger, workers=2, dask=dask)
    assert (tmp_path / "together.killed").exists()
    pd.testing.assert_frame_equal(together, alone, rtol=1e-5, atol=1e-5)


def test_a_worker_that_does_not_see_the_patches_is_refused_in_one_sentence(trained, folder, tmp_path, ledger):
    _, record = load_encoder(Path(trained.checkpoint))
    files = replace(find_patches(str(folder), [], ledger), folder=tmp_path / "elsewhere")
    config = EmbeddingConfig(data_path=str(folder), output_path=str(tmp_path / "out.csv"))
    with pytest.raises(
        InputError, match=rf"does not see the patches in {tmp_path}/elsewhere; with --dask all machines must share one file system"
    ):
        embed_chunk(EmbeddingJob(config, Path(trained.checkpoint), record.normalisation, None), files)


def test_a_batch_that_a_gpu_has_no_room_for_is_halved(trained, folder, ledger):
    encoder, record = load_encoder(Path(trained.checkpoint))
    pyramid = build_pyramid(load_patches(str(folder), [], ledger), record.normalisation, record.view_size)
    asked = []

    def small(views):
        asked.append(len(views))
        if len(views) > 2:
            raise torch.cuda.OutOfMemoryError("no room")
        return encoder(views)

    np.testing.assert_allclose(embed(small, pyramid, record.view_size, 7), embed(encoder, pyramid, record.view_size, 7), atol=1e-5)
    assert asked == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    asked.clear()
    with pytest.raises(torch.cuda.OutOfMemoryError):
        embed(lambda views: small(views.repeat(3, 1, 1, 1)), pyramid, record.view_size, 1)


def test_a_stopped_run_embeds_only_what_is_not_done_and_damaged_chunks_again(trained, folder, tmp_path, ledger, monkeypatch):
    monkeypatch.setattr(embeddings, "PIXELS_PER_CHUNK", 1)  # a patch per chunk
    alone = make_table(trained, folder, tmp_path / "alone.csv", ledger)
    inner, done = embeddings.embed_chunk, []

    def embed_some(job, chunk, most):
        if len(done) == most:
            raise KeyboardInterrupt
        done.extend(chunk.paths)
        return inner(job, chunk)

    monkeypatch.setattr(embeddings, "embed_chunk", lambda job, chunk: embed_some(job, chunk, 4))
    with pytest.raises(KeyboardInterrupt):
        make_table(trained, folder, tmp_path / "stopped.csv", ledger)
    kept = sorted(tmp_path.glob(".stopped.csv.*.unfinished/*.npz"))
    assert len(kept) == 4
    content = bytearray(kept[0].read_bytes())
    content[len(content) // 2] ^= 1
    kept[0].write_bytes(content)
    done.clear()
    monkeypatch.setattr(embeddings, "embed_chunk", lambda job, chunk: embed_some(job, chunk, 99))
    pd.testing.assert_frame_equal(make_table(trained, folder, tmp_path / "stopped.csv", ledger), alone)
    assert len(done) == 4  # the other three, and the damaged one
    assert any("3 of 7 chunks of patches were done" in note for note in ledger.notes)
    assert not list(tmp_path.glob(".stopped*"))


def test_a_vector_that_is_no_number_is_refused_with_its_patch(trained, folder, tmp_path, ledger, monkeypatch):
    inner = embeddings.embed_chunk

    def spoiled(job, chunk):
        part = inner(job, chunk)
        part.vectors[2, 5] = np.nan
        return part

    monkeypatch.setattr(embeddings, "embed_chunk", spoiled)
    with pytest.raises(InputError, match=r"vectors of 1 patches are no numbers \(00002\)"):
        make_table(trained, folder, tmp_path / "out.csv", ledger)
    assert not list(tmp_path.glob("*out.csv*"))
