"""Descriptions of machines become a cluster that loads; what is not said is marked; hostile files are refused."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from hwprofiles.catalogue import cluster
from hwprofiles.errors import UserError
from planner.imports.cluster import import_cluster, read_description
from planner.imports.slurm_files import hosts_of
from tests.planner_cli.running import moecast

HEAD = "\tGPU0\tGPU1\tGPU2\tGPU3\tNIC0\tNIC1\tCPU Affinity\tNUMA Affinity\n"
SMI = HEAD + "".join(
    f"GPU{i}\t" + "\t".join("X" if i == j else "NV18" for j in range(4)) + f"\tPIX\tSYS\t0-31\t{i // 2}\n"
    for i in range(4)
)
PAIRS = HEAD + "".join(
    f"GPU{i}\t" + "\t".join("X" if i == j else "NV4" if i // 2 == j // 2 else "SYS" for j in range(4))
    + f"\tPIX\tSYS\t0-31\t{i // 2}\n"
    for i in range(4)
)  # fmt: skip
GPU = (
    '<pci busid="{b}" class="0x030200"><gpu dev="{i}" sm="90" rank="{i}" gdr="1">'
    '<nvlink target="x" count="18"/></gpu></pci>'
)
NET = '<pci busid="n{i}"><nic><net name="mlx5_{i}" dev="{i}" speed="400000" port="1"/></nic></pci>'
NCCL = (
    '<system version="1">'
    + "".join(
        f'<cpu numaid="{c}" arch="x86_64"><pci busid="s{c}" class="0x060400">'
        + "".join(GPU.format(b=f"g{i}", i=i) + NET.format(i=i) for i in range(4 * c, 4 * c + 4))
        + "</pci></cpu>"
        for c in range(2)
    )
    + "</system>"
)
CONF = """# two leaves under a spine
SwitchName=leaf0 Nodes=n[00-03]
SwitchName=leaf1 Nodes=n[04-07]
SwitchName=spine Switches=leaf[0-1]
"""
YAML = """
- topology: default
  cluster_default: true
  tree:
    switches:
      - switch: spine
        children: leaf[0-1]
      - switch: leaf0
        nodes: n[00-03]
      - switch: leaf1
        nodes: n[04-07]
"""
LSTOPO = """<?xml version="1.0"?>
<!DOCTYPE topology SYSTEM "hwloc2.dtd">
<topology version="2.0"><object type="Machine"><object type="Package" os_index="0"/><object type="Package" os_index="1">
<object type="PCIDev" pci_type="0302 [10de:2330] [0000:0000] a1"><info name="PCIDevice" value="GH100 [H100 SXM5 80GB]"/>
<object type="OSDev" name="mlx5_0" osdev_type="3"/></object></object></object></topology>
"""


def write(folder: Path, **texts: str) -> list[str]:
    """Files by name (`_` stands for the dot)."""
    out = []
    for name, text in texts.items():
        path = folder / name.replace("_", ".")
        path.write_text(text)
        out.append(str(path))
    return out


def test_all_descriptions_together_make_a_cluster_that_loads(tmp_path: Path) -> None:
    files = write(tmp_path, node_xml=NCCL, topology_conf=CONF)
    made = import_cluster(files, name="mine")
    path = tmp_path / "cluster.toml"
    path.write_text(made.text)
    read = cluster(str(path))
    assert (read.name, read.device, read.num_nodes, read.devices_per_node, read.domain_devices) == (
        "mine",
        "H100",
        8,
        8,
        8,
    )
    assert read.scale_out.bytes_per_s == 50e9 and read.scale_out.shared_by == "device"
    assert (read.node.nics, read.node.sockets) == (8, 2)
    assert [(level.name, level.devices) for level in read.fabric] == [("leaf", 32)]
    assert {"device", "scale_up.bytes_per_s", "host_mem_bytes", "fabric leaf.oversubscription"} <= set(made.assumed)
    assert "scale_out.bytes_per_s" not in made.assumed and "num_nodes" not in made.assumed
    for key in ("device =", "host_mem_bytes ="):
        line = next(x for x in made.text.splitlines() if x.startswith(key))
        assert "# assumed: " in line
    note = tomllib.loads(made.text)["source"]["note"]
    assert all(key in note for key in made.assumed)


def test_the_matrix_of_a_node(tmp_path: Path) -> None:
    (all_joined, pairs) = write(tmp_path, a_txt=SMI, b_txt=PAIRS)
    one, two = read_description(all_joined), read_description(pairs)
    assert (one.devices, one.domain, one.nics, one.sockets) == (4, 4, 2, 2)
    assert two.domain == 2
    with pytest.raises(UserError, match="give it with --device"):
        import_cluster([all_joined])
    assert 'device = "A100" # given' in import_cluster([pairs], device="A100").text
    with pytest.raises(UserError, match="differ in domain"):
        import_cluster([all_joined, pairs], device="A100")


def test_both_forms_of_slurms_topology_say_the_same(tmp_path: Path) -> None:
    conf, yaml = (read_description(path) for path in write(tmp_path, t_conf=CONF, t_yaml=YAML))
    assert conf.levels == yaml.levels == (("leaf", 4),)
    assert conf.nodes == yaml.nodes == tuple(f"n{i:02d}" for i in range(8))
    blocks = "- topology: b\n  block:\n    block_sizes: [4]\n    blocks:\n      - block: b0\n        nodes: n[0-3]\n"
    blocks += "      - block: b1\n        nodes: n[4-7]\n"
    (path,) = write(tmp_path, b_yaml=blocks)
    assert read_description(path).levels == (("block", 4),)


def test_lstopo_names_the_device(tmp_path: Path) -> None:
    (path,) = write(tmp_path, l_xml=LSTOPO)
    facts = read_description(path)
    assert (facts.devices, facts.sockets, facts.nics, facts.device_name) == (1, 2, 1, "H100")


@pytest.mark.parametrize(
    ("said", "name"),
    [("GH100 [H100 PCIe]", "H100 PCIe"), ("AD102GL [L40S]", "L40S"), ("GV100GL [Tesla V100 SXM2 32GB]", "V100"),
     ("GH100 [GH200 480GB]", "GH200")],
)  # fmt: skip
def test_lstopo_tells_variants_of_a_device_apart(said: str, name: str, tmp_path: Path) -> None:
    (path,) = write(tmp_path, l_xml=LSTOPO.replace("GH100 [H100 SXM5 80GB]", said))
    assert read_description(path).device_name == name
    assert f'device = "{name}"' in import_cluster([path]).text


BOMB = '<!DOCTYPE b [<!ENTITY a "aaaa"><!ENTITY c "&a;&a;&a;">]><system version="1"><x>&c;</x></system>'
EXTERNAL = '<!DOCTYPE b [<!ENTITY x SYSTEM "file:///etc/passwd">]><system version="1"><x>&x;</x></system>'
DTD = '<?xml version="1.0"?><!DOCTYPE s SYSTEM "file:///etc/passwd"><system version="1"><gpu/></system>'


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("bomb_xml", BOMB, "EntitiesForbidden"),
        ("external_xml", EXTERNAL, "EntitiesForbidden"),
        ("dtd_xml", DTD, "document type is another file, 'file:///etc/passwd'"),
        ("broken_xml", "<system><gpu>", "not XML"),
        ("other_xml", "<html/>", "give an NCCL"),
        ("version_xml", '<system version="9"><gpu/></system>', "version '9'"),
        ("empty_xml", '<system version="1"></system>', "no GPU"),
        ("deep_xml", "<a>" * 50_000 + "</a>" * 50_000, "XML of"),
        ("ring_conf", "SwitchName=l Nodes=n1\nSwitchName=a Switches=b\nSwitchName=b Switches=a\n", "ring"),
        ("dangling_conf", "SwitchName=l Nodes=n1\nSwitchName=a Switches=zz\n", "not described"),
        ("twice_conf", "SwitchName=l Nodes=n1\nSwitchName=l Nodes=n2\n", "twice"),
        ("many_conf", "SwitchName=l Nodes=n[0-99999999]\n", "more than"),
        ("product_conf", "SwitchName=l Nodes=n[0-9999]x[0-9999]\n", "more than"),
        ("alias_yaml", "topology: &a [1]\nx: [*a, *a]\n", "aliases"),
        ("tag_yaml", "topology: !!python/object/apply:os.system ['id']\n", "not YAML"),
        ("shape_yaml", "- topology: t\n  tree: 7\n", "not a topology"),
        ("text_txt", "hello", "not known"),
        ("smi_txt", "GPU0 GPU1\nGPU0 X\n", "matrix"),
    ],
)
def test_hostile_and_broken_files_are_refused(name: str, text: str, said: str, tmp_path: Path) -> None:
    files = write(tmp_path, **{name: text})
    with pytest.raises(UserError, match=said):
        import_cluster(files, device="H100")


def test_sizes_are_bounded(tmp_path: Path) -> None:
    (path,) = write(tmp_path, big_xml="<system>" + " " * (16 * 2**20) + "</system>")
    with pytest.raises(UserError, match="larger than"):
        import_cluster([path])
    with pytest.raises(UserError, match="1 to 16"):
        import_cluster([path] * 17)
    assert hosts_of("a[1-2]b[1-2],c", "-") == ["a1b1", "a1b2", "a2b1", "a2b2", "c"]


def test_names_cannot_leave_their_line(tmp_path: Path) -> None:
    path = tmp_path / "evil\nnum_nodes = 7 #.conf"
    path.write_text(CONF)
    made = import_cluster([str(path)], device="H100", name='x"\nnum_nodes = 9')
    data = tomllib.loads(made.text)
    assert data["num_nodes"] == 8 and data["name"].startswith('x"?')


def test_the_verb(tmp_path: Path) -> None:
    files = write(tmp_path, topo_txt=SMI, topology_conf=CONF)
    out = tmp_path / "cluster.toml"
    done = moecast("import", "cluster", *files, "--device", "H100", "--out", str(out))
    assert done.code == 0, done.err
    assert "assumed: " in done.out and cluster(str(out)).num_devices == 32
    assert moecast("import", "cluster", str(tmp_path / "none"), "--out", str(out)).code == 2
