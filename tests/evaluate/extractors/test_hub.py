"""DINOv2 and ResNet-50 through transformers, with tiny networks of made-up weights in the layout of the hub."""

import hashlib
import shutil
import warnings

import pytest
import torch
from tests.oracles import require

from cdm.errors import CorruptError, UserError
from cdm.evaluate.extractors import load_extractor
from cdm.evaluate.extractors.base import MissingWeights

transformers = require("transformers", "make install")

CPU = torch.device("cpu")
IMAGES = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def tiny(name):
    if name == "dinov2":
        config = transformers.Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=56)
        return transformers.Dinov2Model(config)
    return transformers.ResNetModel(transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 24], depths=[1, 1]))


@pytest.fixture(scope="module", params=["dinov2", "resnet50"])
def saved(request, tmp_path_factory):
    """A folder as the hub has it: name, path, network."""
    folder = tmp_path_factory.mktemp(request.param)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = tiny(request.param).eval()
    net.save_pretrained(folder)
    return request.param, folder, net


def test_features_are_the_networks_own(saved):
    name, folder, net = saved
    extractor = load_extractor(name, weights=folder, device=CPU, unverified=True)
    assert (extractor.name, extractor.verified) == (name, False)
    assert extractor.dim == {"dinov2": 16, "resnet50": 24}[name]
    x = torch.nn.functional.interpolate(IMAGES.float(), size=(224, 224), mode="bicubic", antialias=True) / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        out = net(pixel_values=(x - mean) / std)
    want = out.last_hidden_state[:, 0] if name == "dinov2" else out.last_hidden_state.mean(dim=(2, 3))
    torch.testing.assert_close(extractor(IMAGES).main, want, rtol=1e-4, atol=1e-5)
    grey = IMAGES[:, :1]
    torch.testing.assert_close(extractor(grey).main, extractor(grey.expand(-1, 3, -1, -1)).main)
    with pytest.raises(UserError, match="1 or 3 channels; got 2"):
        extractor(IMAGES[:, :2])


def test_features_do_not_depend_on_the_batch(saved):
    name, folder, _ = saved
    extractor = load_extractor(name, weights=folder, device=CPU, unverified=True)
    alone = torch.cat([extractor(image[None]).main for image in IMAGES])
    torch.testing.assert_close(extractor(IMAGES).main, alone, rtol=1e-5, atol=1e-5)


def test_weights_of_unknown_origin_need_the_option(saved):
    name, folder, _ = saved
    with pytest.raises(UserError, match="--unverified-weights") as told:
        load_extractor(name, weights=folder, device=CPU)
    assert "`hf download" in str(told.value) and "--local-dir" not in str(told.value)


def test_the_hubs_cache_is_found_and_its_checksum_counts(saved, tmp_path, monkeypatch):
    """A cache as huggingface_hub lays it out: a blob under its SHA-256, a link to it under its name."""
    name, folder, _ = saved
    repository = {"dinov2": "facebook/dinov2-large", "resnet50": "microsoft/resnet-50"}[name]
    monkeypatch.setenv("CDM_WEIGHTS", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    base = tmp_path / f"models--{repository.replace('/', '--')}"
    snapshot = base / "snapshots" / "abc"
    for part in (base / "refs", base / "blobs", snapshot):
        part.mkdir(parents=True)
    (base / "refs" / "main").write_text("abc")
    for file in ("config.json", "model.safetensors"):
        content = (folder / file).read_bytes()
        blob = base / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / file).symlink_to(blob)
    extractor = load_extractor(name, device=CPU, unverified=True)
    assert not extractor.verified  # of another width than what is published
    width = extractor.dim
    module = "cdm.evaluate.extractors"
    model = {"dinov2": "DINOV2", "resnet50": "RESNET50"}[name]
    from cdm.evaluate.extractors import hub

    smaller = hub.HubModel(name, repository, getattr(hub, model).transformers_class, width)
    for place in (module, f"{module}.hub"):
        monkeypatch.setattr(f"{place}.{model}", smaller)
    assert load_extractor(name, device=CPU).verified
    assert load_extractor(name, weights=folder, device=CPU).verified  # the same file, by its checksum
    other = tmp_path / "models--somebody--fine-tuned"
    base.rename(other)
    for file in ("config.json", "model.safetensors"):
        link = other / "snapshots" / "abc" / file
        link.unlink()
        link.symlink_to(other / "blobs" / hashlib.sha256((folder / file).read_bytes()).hexdigest())
    with pytest.raises(UserError, match="not known to be the published ones"):  # whole, and of another repository
        load_extractor(name, weights=other / "snapshots" / "abc", device=CPU)
    base.mkdir()
    (other / "blobs").rename(base / "blobs")
    (other / "refs").rename(base / "refs")
    snapshot.mkdir(parents=True)
    for file in ("config.json", "model.safetensors"):
        (snapshot / file).symlink_to(base / "blobs" / hashlib.sha256((folder / file).read_bytes()).hexdigest())
    assert load_extractor(name, device=CPU).verified
    wrong = base / "blobs" / ("0" * 64)
    (snapshot / "model.safetensors").resolve().rename(wrong)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(wrong)
    with pytest.raises(UserError, match="not known to be the published ones"):
        load_extractor(name, device=CPU)


def test_damaged_folders_are_one_sentence(saved, tmp_path):
    name, folder, _ = saved
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    whole = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptError, match="cannot be loaded as"):
        load_extractor(name, weights=broken, device=CPU, unverified=True)
    (broken / "model.safetensors").write_bytes(whole)
    (broken / "config.json").write_text("{")
    with pytest.raises(CorruptError, match="cannot be loaded as"):
        load_extractor(name, weights=broken, device=CPU, unverified=True)
    (broken / "config.json").unlink()
    with pytest.raises(MissingWeights, match=r"config\.json is not there"):
        load_extractor(name, weights=broken, device=CPU, unverified=True)


def test_weights_of_another_network_are_refused(saved, tmp_path):
    name, folder, _ = saved
    other = tmp_path / "other"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tiny("resnet50" if name == "dinov2" else "dinov2").save_pretrained(other)
    shutil.copy(folder / "config.json", other / "config.json")
    with pytest.raises(CorruptError, match="do not fit"):
        load_extractor(name, weights=other, device=CPU, unverified=True)
