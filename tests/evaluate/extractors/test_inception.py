"""The Inception extractor on made-up weights: its parts, and which weights it takes."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file
from tests.inception_weights import made_up_state, save_published_layout
from tests.oracles import require

from cdm.errors import CorruptError, UserError
from cdm.evaluate.extractors import inception, load_extractor
from cdm.evaluate.extractors.base import widths

if not inception.importlib.util.find_spec("torch_fidelity"):
    require("torch_fidelity", "make install-oracles")

CPU = torch.device("cpu")
IMAGES = torch.randint(0, 256, (3, 3, 40, 30), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return save_published_layout(tmp_path_factory.mktemp("weights") / inception.FILE)


@pytest.fixture(scope="module")
def extractor(file):
    return load_extractor("inception", weights=file, device=CPU, unverified=True)


def test_three_parts(extractor):
    features = extractor(IMAGES)
    assert {name: part.shape[1] for name, part in features.by_name().items()} == widths(extractor)
    assert widths(extractor) == {"main": 2048, "spatial": 2023, "probabilities": 1008}
    torch.testing.assert_close(features.probabilities.sum(dim=1), torch.ones(3))
    assert (extractor.name, extractor.verified) == ("inception", False)


def test_spatial_features_are_seven_channels_in_the_order_of_adm(extractor):
    """height, width, channel: feature (7 (17 y + x) + c) is channel c of the first branch of mixed_6 at (y, x)."""
    kept = {}
    block = extractor.net.get_submodule("Mixed_6d")
    hook = block.register_forward_hook(lambda module, inputs, output: kept.update(out=output))
    spatial = extractor(IMAGES).spatial
    hook.remove()
    for c, y, x in ((0, 0, 0), (6, 16, 16), (3, 5, 11)):
        torch.testing.assert_close(spatial[:, 7 * (17 * y + x) + c], kept["out"][:, c, y, x])


def test_features_do_not_depend_on_the_batch(extractor):
    alone = torch.cat([extractor(image[None]).main for image in IMAGES])
    torch.testing.assert_close(extractor(IMAGES).main, alone, rtol=1e-5, atol=1e-5 * float(alone.abs().max()))


def test_channels(extractor):
    grey = IMAGES[:1, :1]
    torch.testing.assert_close(extractor(grey).main, extractor(grey.expand(-1, 3, -1, -1)).main)
    with pytest.raises(UserError, match="1 or 3 channels; got 4"):
        extractor(torch.zeros(1, 4, 8, 8, dtype=torch.uint8))


def test_weights_that_are_not_the_published_ones_need_the_option(file):
    with pytest.raises(UserError, match=r"not known to be the published ones.*--unverified-weights"):
        load_extractor("inception", weights=file, device=CPU)


def test_the_checksum_makes_them_verified(file, monkeypatch):
    monkeypatch.setattr(inception, "SHA256_START", hashlib.sha256(file.read_bytes()).hexdigest()[:8])
    assert load_extractor("inception", weights=file, device=CPU).verified


def test_found_in_the_folder_of_weights_and_as_safetensors(file, tmp_path, monkeypatch, extractor):
    monkeypatch.setenv("CDM_WEIGHTS", str(file.parent))
    assert load_extractor("inception", device=CPU, unverified=True).hash == extractor.hash
    save_file({name: value.contiguous() for name, value in made_up_state().items()}, tmp_path / "w.safetensors")
    by_safetensors = load_extractor("inception", weights=tmp_path / "w.safetensors", device=CPU, unverified=True)
    assert by_safetensors.hash == extractor.hash


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


def test_damaged_weights_are_one_sentence(file, tmp_path):
    path = tmp_path / inception.FILE
    whole = file.read_bytes()
    for content in (b"", b"no weights", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(CorruptError, match="damaged or holds more than tensors"):
            load_extractor("inception", weights=path, device=CPU, unverified=True)
    (tmp_path / "w.safetensors").write_bytes(whole)
    with pytest.raises(CorruptError, match="damaged"):
        load_extractor("inception", weights=tmp_path / "w.safetensors", device=CPU, unverified=True)


def test_no_code_is_run_and_other_layouts_are_refused(tmp_path):
    path = tmp_path / inception.FILE
    for content, message in (
        ({"a": Bomb()}, "damaged or holds more than tensors"),
        ([1, 2], "no dictionary of tensors"),
        ({"a": torch.ones(3)}, "do not fit the Inception network"),
    ):
        torch.save(content, path)  # noqa: TID251  what a user may have
        with pytest.raises(CorruptError, match=message):
            load_extractor("inception", weights=path, device=CPU, unverified=True)
