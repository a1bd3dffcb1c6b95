from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ddpm.model_file import format_of, read_model_file, write_model_file


@pytest.mark.parametrize("length", range(0, 256, 8))
def test_no_length_of_the_header_is_taken_for_a_pickle(tmp_path: Path, length: int) -> None:
    """A header's length is a multiple of 8, and its lowest byte comes first: one in 32 begins as pickles do."""
    file, tensors = tmp_path / "x.safetensors", {"a": torch.zeros(1)}
    write_model_file(file, {"padding": ""}, tensors)
    lowest = int.from_bytes(file.read_bytes()[:8], "little") % 256
    description = {"padding": " " * ((length - lowest) % 256)}
    write_model_file(file, description, tensors)
    assert file.read_bytes()[0] == length
    assert read_model_file(file)[0] == description
    assert format_of(file) == "ddpm-model"
