"""What Google Cloud calls our topologies, and what it does not have."""

import math
import re

import pytest

from launch import chips
from launch.chips import check_zone, gcloud_flags, rent, shapes
from vitscale.errors import UserError
from vitscale.parallel.aot import CHIPS


@pytest.mark.parametrize(
    ("topology", "slices", "hosts", "per_host", "machine", "flags"),
    [
        ("v5e:1x1", 1, 1, 1, "ct5lp-hightpu-1t", ["--accelerator-type=v5litepod-1"]),
        ("v5e:2x4", 1, 1, 8, "ct5lp-hightpu-8t", ["--accelerator-type=v5litepod-8"]),
        ("4*v5e:16x16", 4, 64, 4, "ct5lp-hightpu-4t", ["--accelerator-type=v5litepod-256"]),
        ("v6e:4x8", 1, 8, 4, "ct6e-standard-4t", ["--accelerator-type=v6e-32"]),
        ("v4:2x2x1", 1, 1, 4, "ct4p-hightpu-4t", ["--accelerator-type=v4-8"]),
        ("v4:4x4x16", 1, 64, 4, "ct4p-hightpu-4t", ["--type=v4", "--topology=4x4x16"]),
        ("v5p:8x8x8", 1, 128, 4, "ct5p-hightpu-4t", ["--accelerator-type=v5p-1024"]),
    ],
)
def test_tpus_by_the_names_of_the_cloud(topology, slices, hosts, per_host, machine, flags):
    rented = rent(topology)
    assert (rented.slices, rented.hosts, rented.chips_per_host) == (slices, hosts, per_host)
    assert rented.machine == machine
    assert gcloud_flags(rented) == flags


@pytest.mark.parametrize(
    ("topology", "hosts", "machine"),
    [
        ("a100-40gb:4", 1, "a2-highgpu-4g"),
        ("a100-80gb:16", 2, "a2-ultragpu-8g"),
        ("h100:1", 1, "a3-highgpu-1g"),
        ("h100:8", 1, "a3-highgpu-8g"),
        ("h200:16", 2, "a3-ultragpu-8g"),
    ],
)
def test_gpus_by_the_names_of_the_cloud(topology, hosts, machine):
    rented = rent(topology)
    assert (rented.hosts, rented.machine, rented.is_tpu) == (hosts, machine, False)
    with pytest.raises(UserError, match="no TPU VMs"):
        gcloud_flags(rented)


def test_every_shape_is_rented_whole_and_by_a_name_of_its_own():
    for chip in chips.TPUS:
        names = []
        for shape in shapes(chip):
            rented = rent(f"{chip}:{'x'.join(map(str, shape))}")
            assert rented.hosts * rented.chips_per_host == math.prod(shape)
            names.append(rented.accelerator_type)
        found = [name for name in names if name]
        assert len(found) == len(set(found)) == len({math.prod(s) for s in shapes(chip)})


@pytest.mark.parametrize(
    ("topology", "words"),
    [
        ("v5e:3x3", "v5e:1x1, v5e:2x2, v5e:2x4, v5e:4x4, v5e:4x8, v5e:8x8, v5e:8x16, v5e:16x16"),
        ("v5e:4x2", "cannot be rented"),
        ("v5p:8x4x4", "near yours: v5p:4x4x4, v5p:4x4x8"),
        ("v4:16x16x16", "up to 12x16x16"),
        ("h200:4", "h200:8 and multiples of 8"),
        ("h100:3x4", "h100:1, h100:2, h100:4, h100:8 and multiples of 8"),
        ("v9:4x4", "is not known"),
    ],
)
def test_a_topology_that_does_not_exist_names_those_that_do(topology, words):
    with pytest.raises(UserError, match=re.escape(words)):
        rent(topology)


def test_queued_resources_are_refused_for_what_they_do_not_have():
    with pytest.raises(UserError, match="launch gke"):
        gcloud_flags(rent("tpu7x:4x4x4"))
    with pytest.raises(UserError, match="are v5p:4x8x8"):
        gcloud_flags(rent("v5p:4x4x16"))


def test_zones_are_those_of_the_table_unless_told_otherwise():
    check_zone("v5e", "us-west4-a")
    with pytest.raises(UserError, match=r"has no v5e.*of 2026-02.*us-west4-a.*--any-zone") as error:
        check_zone("v5e", "us-west4-b")
    assert "accelerator-types list --zone=us-west4-b" in str(error.value)
    check_zone("v5e", "us-west4-b", any_zone=True)


def test_the_tables_know_every_chip_that_can_be_planned():
    assert CHIPS.keys() == chips.TPUS.keys() | chips.GPUS.keys()
    assert CHIPS.keys() == chips.ZONES.keys()
    for chip, zones in chips.ZONES.items():
        assert len(set(zones)) == len(zones), chip
        assert all(re.fullmatch(r"[a-z]+-[a-z]+[0-9]+-(ai[0-9])?[a-z]", zone) for zone in zones)
