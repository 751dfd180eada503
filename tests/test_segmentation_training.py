"""Training of the embedded segmentation network: label maps, synthetic images, learning, resuming."""

import csv

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import ndimage

from core.errors import InputError
from core.segmentation import embedded, labelmaps, synthesis, train
from core.segmentation.network import WIDTHS, SegmentationNet, load_weights, parts_of, save_weights
from core.volume import FULL, HALF, normalise_percentile

SETTINGS = train.Settings(steps=40, seed=3)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def person():
    return labelmaps.template_person()


@pytest.fixture(scope="module")
def prior(person):
    return train.make_prior([person])


@pytest.fixture(scope="module")
def examples(person):
    source = train.Examples([person], SETTINGS)
    return [source[step] for step in range(2)]


def test_ids_merge_as_the_published_table_says():
    kept = {
        25: 2,
        57: 41,
        136: 4,
        137: 5,
        163: 43,
        164: 44,
        2: 2,
        24: 24,
        1001: 1001,
        2035: 2035,
        507: 0,
        165: 0,
        85: 0,
    }
    ids = labelmaps.id_of_code()[labelmaps.encode(np.array([list(kept)], np.int32))]
    assert ids.tolist() == [list(kept.values())]


def test_every_code_has_one_mirror_image_with_the_mirrored_structure():
    mirror, structure = labelmaps.mirror_of_code(), labelmaps.structure_of_code()
    assert (mirror[mirror] == np.arange(labelmaps.N_CODES)).all()
    assert (structure[mirror] == mirror[structure]).all()
    assert (labelmaps.parcel_of_code()[mirror] == labelmaps.parcel_of_code()).all()


def test_depth_is_negative_in_the_brain_and_grows_outwards(person):
    tissue = (person.codes > 0) & (person.codes != labelmaps.CSF)
    assert person.depth[tissue].max() <= 0
    assert person.depth[0, 0, 0] > 40


def test_a_map_without_a_structure_is_refused(tmp_path, person):
    from core.volume import Volume, save

    labels = labelmaps.id_of_code()[person.codes]
    labels[labels == 17] = 0
    save(Volume(labels, FULL.affine), tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match="17"):
        labelmaps.prepare(tmp_path, tmp_path / "cache")


def test_a_folder_without_maps_is_refused(tmp_path, capsys):
    assert train.main(["--labels", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "no label map" in capsys.readouterr().err


@pytest.mark.parametrize("grid", [HALF, FULL], ids=lambda g: g.name)
def test_images_are_seeded_and_normalised(person, grid):
    one, two, other = (
        synthesis.render(synthesis.as_is(person), grid, np.random.default_rng(seed), plain=True) for seed in (1, 1, 2)
    )
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert not torch.equal(one[0], other[0])
    assert one[0].shape == grid.shape
    assert one[0].dtype == torch.float32
    assert one[0].min() == -1
    assert float(one[0].max()) == pytest.approx(1)


def test_images_follow_the_intensity_rule_of_real_scans(person):
    signal = torch.rand(FULL.shape, generator=torch.Generator().manual_seed(0)) * torch.from_numpy(person.codes > 0)
    ruled = synthesis._percentile_rule(signal) * 2 - 1
    assert np.abs(ruled.numpy() - normalise_percentile(signal.numpy())).max() < 5e-3


def test_smoothing_is_that_of_scipy():
    maps = torch.rand(2, 18, 24, 18, generator=torch.Generator().manual_seed(0))
    expected = ndimage.gaussian_filter(maps.numpy(), (0, 1.5, 1.5, 1.5), mode="constant")
    assert np.allclose(synthesis._smoothed(maps, 1.5).numpy(), expected, atol=1e-4)


def test_labels_survive_deformation(person):
    moved = synthesis.deform(synthesis.as_is(person), np.random.default_rng(5)).codes.numpy()
    before, after = (np.bincount(c.ravel(), minlength=labelmaps.N_CODES) for c in (person.codes, moved))
    assert set(np.unique(moved)) == set(np.unique(person.codes))
    both = (before + before[labelmaps.mirror_of_code()]) / 2
    large = both > 500
    assert np.all(after[large] > 0.3 * both[large])
    assert np.all(after[large] < 3 * both[large])


def test_what_is_cut_off_is_background(person):
    for seed in range(4):
        image, codes = synthesis.render(synthesis.as_is(person), FULL, np.random.default_rng(seed), plain=True)
        assert set(np.unique(codes)) <= set(np.unique(person.codes))
        assert (image[codes > 0] > -1).float().mean() > 0.99


def test_prior_is_a_distribution_and_symmetric(prior):
    assert torch.allclose(prior[:33].sum(0), torch.ones(prior.shape[1:]), atol=1e-4)
    assert torch.allclose(prior[33:].sum(0), torch.ones(prior.shape[1:]), atol=1e-4)
    left, right = labelmaps.STRUCTURES.index(17), labelmaps.STRUCTURES.index(53)
    assert torch.allclose(prior[left], prior[right].flip(0), atol=1e-5)


def test_steps_lower_the_loss_of_a_fixed_example(prior, examples):
    run = train.Run(prior, train.Settings(steps=1000, seed=0))
    losses = [run.learn(*examples[0]) for _ in range(3)]
    assert losses[-1] < losses[0]


def test_a_resumed_run_has_the_losses_of_one_that_was_not(tmp_path, prior, examples):
    whole = train.Run(prior, SETTINGS)
    expected = [whole.learn(*example) for example in examples]
    first = train.Run(prior, SETTINGS)
    found = [first.learn(*examples[0])]
    first.save(tmp_path / "checkpoint.pt")
    second = train.Run(torch.zeros_like(prior), SETTINGS)
    second.load(tmp_path / "checkpoint.pt")
    found += [second.learn(*example) for example in examples[1:]]
    assert found == expected
    assert second.step == 2


def test_examples_depend_on_the_step_alone(person, examples):
    again = train.Examples([person], SETTINGS)[1]
    assert torch.equal(again[0], examples[1][0])
    assert torch.equal(again[1], examples[1][1])


def test_a_step_on_two_images_has_the_mean_of_their_losses(prior, person):
    pair = train.Examples([person], train.Settings(steps=40, seed=3, batch=2))[0]
    assert pair[0].shape[:2] == (2, 1)
    assert not torch.equal(pair[0][0], pair[0][1])
    twice = [torch.cat([part[:1], part[:1]]) for part in pair]
    alone, both = (train.Run(prior, SETTINGS) for _ in range(2))
    single = alone.learn(*(part[:1] for part in pair))
    assert both.learn(*twice) == pytest.approx(single, rel=0.05)  # other voxels enter the loss of the second image


def test_the_curve_is_cut_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "curve.csv"
    train._write(path, [{"step": str(step), "loss": "1"} for step in (10, 20, 30)])
    assert [row["step"] for row in train._rows_until(path, 20)] == ["10", "20"]
    with path.open(newline="") as table:
        assert len(list(csv.DictReader(table))) == 3


def test_parts_are_the_eight_voxels_of_a_larger_one_in_the_order_of_the_codes():
    image = torch.arange(np.prod(FULL.shape), dtype=torch.float32).reshape(1, 1, *FULL.shape)
    parts = parts_of(image)[0].flatten(1).T  # (voxels, 8)
    assert torch.equal(parts[0], image[0, 0, :2, :2, :2].flatten())
    cheap = (np.arange(np.prod(FULL.shape)) % 251).astype(np.uint8).reshape(FULL.shape)
    assert np.array_equal(train.voxel_codes(torch.from_numpy(cheap)), (parts.numpy() % 251).astype(np.uint8))


def test_one_network_serves_both_grids_and_detail_starts_at_zero(prior):
    net = SegmentationNet(prior)
    image = torch.rand(1, 1, *FULL.shape) * 2 - 1
    with torch.no_grad():
        coarse = net(torch.nn.functional.avg_pool3d(image, 2))
        fine = net(image)
        bottleneck = net.bottleneck(image)
    assert bottleneck.shape == (1, WIDTHS[-1], 9, 12, 9)
    for at_2mm, at_1mm, classes in zip(coarse, fine, (33, 34), strict=True):
        assert at_2mm.shape == (len(net.region), classes)
        assert at_1mm.shape == (len(net.region), 8, classes)
        assert torch.allclose(at_1mm, at_2mm[:, None].expand_as(at_1mm), atol=1e-5)


def test_labels_and_posteriors_of_a_volume_agree_with_the_logits(prior):
    torch.manual_seed(0)
    net = SegmentationNet(prior).eval()
    torch.nn.init.normal_(net.fine.head.weight, std=0.5)
    image = torch.rand(1, 1, *FULL.shape) * 2 - 1
    labels, sums = embedded.infer(net, image[0, 0].numpy(), FULL)
    with torch.no_grad():
        structures, _ = net(image)
    assert sums.structures == pytest.approx(structures.softmax(2).sum((0, 1)).double().numpy(), rel=1e-4)
    table = np.where(labels >= 2000, 42, np.where(labels >= 1000, 3, labels))
    whole = train.voxel_codes(torch.from_numpy(labelmaps.encode(table.astype(np.int32))))
    assert np.array_equal(whole[net.region], structures.argmax(2).numpy().astype(np.uint8))
    assert sums.counts.sum() == 8 * len(net.region)
    assert sums.parcels.sum() == pytest.approx(sums.structures[list(labelmaps.CORTEX)].sum(), rel=0.02)


def test_training_starts_from_exported_weights_and_keeps_its_own_prior(tmp_path, prior):
    net = SegmentationNet(prior / 2)
    save_weights(net, tmp_path / "w.safetensors")
    run = train.Run(prior, SETTINGS)
    run.start_from(tmp_path / "w.safetensors")
    assert torch.equal(run.net.prior, prior)
    assert torch.allclose(run.net.head.weight, net.head.weight, atol=1e-3)
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="other"):
        run.start_from(tmp_path / "other.safetensors")


def test_weights_come_back_from_safetensors(tmp_path, prior):
    net = SegmentationNet(prior)
    save_weights(net, tmp_path / "w.safetensors", step="1")
    back = load_weights(tmp_path / "w.safetensors")
    assert all(torch.allclose(a, b, atol=2e-3) for a, b in zip(net.parameters(), back.parameters(), strict=True))
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    for name in ("bad", "missing"):
        with pytest.raises(InputError):
            load_weights(tmp_path / f"{name}.safetensors")


def test_perfect_logits_score_one(person, prior):
    net = SegmentationNet(prior)
    codes = torch.from_numpy(person.codes)
    truth = train.voxel_codes(codes)[net.region].numpy()
    structures = train._majority(labelmaps.structure_of_code()[truth], 33)
    parcels = train._majority(np.minimum(labelmaps.parcel_of_code()[truth], 34), 35)
    perfect = (
        torch.nn.functional.one_hot(torch.from_numpy(structures), 33).float(),
        torch.nn.functional.one_hot(torch.from_numpy(parcels), 35).float()[:, :34],
    )
    net.forward = lambda image: perfect
    scores = train.dice_scores(net, torch.zeros(HALF.shape), codes)
    assert min(value for key, value in scores.items() if key != "parcels") == 1
    assert scores["parcels"] > 0.99
