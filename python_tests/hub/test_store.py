"""Released names: from the server into the cache and from there into models."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
import torch

from franca_fast.errors import InputError
from franca_fast.hub import cache_folder, download_model, load_model
from franca_fast.hub.store import verify_cache
from franca_fast.models import ARCHITECTURES, VisionTransformer

SMALLEST = {"embed_dim": 32, "depth": 2, "num_heads": 2}


class RunsACommand:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.fixture(autouse=True)
def _small_and_local(server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("vit_small", "vit_base", "vit_giant2"):
        monkeypatch.setitem(ARCHITECTURES, name, SMALLEST)
    monkeypatch.setenv("FRANCA_FAST_MIRROR", server.address + "/")


def model(**options: object) -> VisionTransformer:
    return VisionTransformer(**{"img_size": 28} | SMALLEST | options).eval()


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def released(backbone: VisionTransformer) -> bytes:
    return saved({"teacher": {f"backbone.{k}": t for k, t in backbone.state_dict().items()}})


def test_released_name_downloads_once(server, cache: Path) -> None:
    original = model()
    server.files["franca_vitb14_In21K.pth"] = released(original)
    first, second = (load_model("franca_vitb14") for _ in range(2))
    image = torch.rand(1, 3, 28, 28)
    assert torch.equal(first(image), original(image))
    assert torch.equal(second(image), original(image))
    assert len(server.requests) == 1
    assert {p.name for p in cache.iterdir()} == {
        "franca_vitb14_In21K.pth",
        "franca_vitb14_In21K.pth.sha256",
        "franca_vitb14_In21K.pth.lock",
    }
    server.files["franca_vitb14_Dinov2_In21K.pth"] = released(model())
    load_model("franca_vitb14", weights="DINOV2_IN21K")
    assert server.requests[-1][0] == "franca_vitb14_Dinov2_In21K.pth"


def test_file_put_there_by_hand_needs_no_network(server, cache: Path) -> None:
    (cache / "franca_vitb14_In21K.pth").write_bytes(released(model()))
    load_model("franca_vitb14")
    assert server.requests == []


@pytest.mark.parametrize(
    ("name", "file", "registers", "interpolation"),
    [
        ("dinov2_vits14", "dinov2_vits14_pretrain.pth", 0, (False, 0.1)),
        ("dinov2_vits14_reg", "dinov2_vits14_reg4_pretrain.pth", 4, (True, 0.0)),
    ],
)
def test_public_dinov2_files(
    server, name: str, file: str, registers: int, interpolation: tuple[bool, float]
) -> None:
    original = model(num_register_tokens=registers, ffn_layer="mlp", img_size=70)
    server.files[file] = saved(original.state_dict())
    loaded = load_model(name)
    assert loaded.config["ffn_layer"] == "mlp"
    assert loaded.config["img_size"] == 70
    assert loaded.num_register_tokens == registers
    assert (loaded.interpolate_antialias, loaded.interpolate_offset) == interpolation
    image = torch.rand(1, 3, 70, 70)
    assert torch.equal(loaded(image), original(image))


def chunked(content: bytes) -> dict[str, bytes]:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        member = tarfile.TarInfo("franca_vitg14_Laion600M.pth")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    data = file.getvalue()
    third = len(data) // 3
    pieces = (data[:third], data[third : 2 * third], data[2 * third :])
    stem = "franca_vitg14_Laion600M_chunked.tar.gz.part_a"
    return {f"{stem}{letter}": piece for letter, piece in zip("abc", pieces, strict=True)}


def test_chunked_release(server, cache: Path) -> None:
    original = model()
    server.files |= chunked(released(original))
    server.drop_after = [10**9, 50]  # the second part breaks off and is continued
    image = torch.rand(1, 3, 28, 28)
    assert torch.equal(load_model("franca_vitg14")(image), original(image))
    load_model("franca_vitg14")
    assert len(server.requests) == 4
    kept = {p.name for p in cache.iterdir() if not p.name.endswith(".lock")}
    assert kept == {"franca_vitg14_Laion600M.pth", "franca_vitg14_Laion600M.pth.sha256"}


def test_damaged_chunks_are_deleted_and_own_ones_stay(server, cache: Path) -> None:
    files = chunked(released(model()))
    last = max(files)
    own = min(files)
    (cache / own).write_bytes(files.pop(own))
    server.files |= files | {last: files[last][:-30]}
    with pytest.raises(InputError, match="damaged, or a part is missing"):
        load_model("franca_vitg14")
    assert [p.name for p in cache.iterdir() if not p.name.endswith(".lock")] == [own]
    server.files |= files
    load_model("franca_vitg14")


def test_parts_stay_when_there_is_no_room_to_unpack(
    server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files |= chunked(released(model()))
    with monkeypatch.context() as patch:
        patch.setattr("franca_fast.hub.chunked_archive._LARGEST", 100)
        with pytest.raises(InputError, match="unpacks to"):
            load_model("franca_vitg14")
    load_model("franca_vitg14")
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"<html>please log in</html>", "damaged, or not a file of PyTorch tensors"),
        (released(model())[:-500], "damaged, or not a file of PyTorch tensors"),
        (released(model(depth=3)), "with depth 3; accepted: vit_base's, 2"),
        (
            released(model(num_register_tokens=4)),
            "num_register_tokens 4; accepted: vit_base's, 0",
        ),
        (saved({"pos_pred.weight": torch.zeros(2, 32)}), "no vision transformer"),
    ],
)
def test_wrong_files_do_not_enter_the_cache(
    server, cache: Path, content: bytes, complaint: str
) -> None:
    server.files["franca_vitb14_In21K.pth"] = content
    with pytest.raises(InputError, match=f"wrong or damaged file, which was deleted.*{complaint}"):
        load_model("franca_vitb14")
    assert [p.suffix for p in cache.iterdir()] == [".lock"]


def test_flipped_bit_is_noticed(server, cache: Path) -> None:
    content = bytearray(released(model()))
    content[len(content) // 2] ^= 1
    server.files["franca_vitb14_In21K.pth"] = bytes(content)
    with pytest.raises(InputError, match="fails its checksum"):
        load_model("franca_vitb14")


def test_malicious_download_runs_nothing(server, cache: Path, tmp_path: Path) -> None:
    server.files["franca_vitb14_In21K.pth"] = saved({"teacher": RunsACommand(tmp_path / "ran")})
    with pytest.raises(InputError, match=r"refused, .*posix\.system.*nothing in it was run"):
        load_model("franca_vitb14")
    assert not (tmp_path / "ran").exists()
    assert [p.suffix for p in cache.iterdir()] == [".lock"]


def test_offline_message_says_what_to_do(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRANCA_FAST_MIRROR", "http://127.0.0.1:1")
    with pytest.raises(InputError) as raised:
        load_model("franca_vitg14")
    message = str(raised.value)
    for part in (
        "http://127.0.0.1:1/franca_vitg14_Laion600M_chunked.tar.gz.part_aa",
        "part_aa, franca_vitg14_Laion600M_chunked.tar.gz.part_ab",
        f"into '{cache}' (FRANCA_FAST_CACHE names another folder)",
        "weights=",
    ):
        assert part in message


def test_weights_that_are_gone_are_said_to_be_withdrawn(server) -> None:
    said = "IN21K_518 was withdrawn upstream"
    with pytest.raises(InputError, match=rf"no file at .*\(HTTP 404\); {said}.* By hand: put"):
        load_model("franca_vitb14", weights="IN21K_518")
    with pytest.raises(InputError) as raised:  # not found either, but listed
        load_model("franca_vitb14", weights="IN21K_224")
    assert "withdrawn" not in str(raised.value)
    server.statuses = [403]  # it may be there
    with pytest.raises(InputError) as raised:
        load_model("franca_vitb14", weights="IN21K_518")
    assert "withdrawn" not in str(raised.value)
    server.files["franca_vitb14_In21K_518.pth"] = released(model())
    load_model("franca_vitb14", weights="IN21K_518")


def test_rasa_file(server, cache: Path) -> None:
    server.files["franca_vitb14_In21K_rasa.pth"] = saved({"pos_pred.weight": torch.zeros(2, 32)})
    file = download_model("franca_vitb14", rasa=True)
    assert file == cache / "franca_vitb14_In21K_rasa.pth"
    server.files["franca_vitb14_In21K_518_rasa.pth"] = released(model())
    with pytest.raises(InputError, match=r"lacks pos_pred\.weight"):
        download_model("franca_vitb14", "IN21K_518", rasa=True)
    with pytest.raises(InputError, match="no RASA file was released for franca_vitb14"):
        download_model("franca_vitb14", "DINOV2_IN21K", rasa=True)


def test_cache_is_verified(server, cache: Path) -> None:
    server.files["franca_vitb14_In21K.pth"] = released(model())
    file = download_model("franca_vitb14")
    own = cache / "dinov2_vits14_pretrain.pth"
    own.write_bytes(b"by hand")
    assert verify_cache() == [(file, True), (own, None)]
    file.write_bytes(file.read_bytes()[:-1])
    assert verify_cache() == [(file, False), (own, None)]


def test_place_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == Path(os.environ["FRANCA_FAST_CACHE"])
    monkeypatch.delenv("FRANCA_FAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "franca_fast"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("~/.cache/franca_fast").expanduser()
