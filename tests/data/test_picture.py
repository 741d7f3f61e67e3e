"""The picture of a partition shows what the partition holds."""

import numpy as np
import pytest
from PIL import Image

from tasks.data.partitions import PartitionSpec, partition
from tasks.data.picture import label_counts, plot_partition

LABELS = np.arange(300) % 30


def share_out(num_clients, labels=LABELS):
    return partition(PartitionSpec("iid", num_clients), labels=labels, columns={}, seed=0)


def test_label_counts_add_up_to_the_data():
    counts = label_counts(share_out(4), LABELS, 30)
    assert counts.shape == (4, 30)
    assert counts.sum(axis=0).tolist() == [10] * 30
    assert label_counts(share_out(4), None, 0).tolist() == [[75]] * 4


@pytest.mark.parametrize(("num_clients", "num_labels"), [(1, 1), (3, 10), (45, 20), (120, 30)])
def test_picture_is_written_for_few_and_many_clients_and_labels(tmp_path, num_clients, num_labels):
    labels = LABELS % num_labels
    names = [f"a label with quite a long name {number}" for number in range(num_labels)]
    plot_partition(share_out(num_clients, labels), labels, names, tmp_path / "partition.png")
    with Image.open(tmp_path / "partition.png") as picture:
        assert picture.format == "PNG"
        assert 300 <= picture.height <= 2000


def test_picture_shows_each_label_in_proportion(tmp_path):
    labels = np.repeat([0, 1], [30, 90])
    plot_partition(share_out(1, labels), labels, ["few", "many"], tmp_path / "partition.png")
    with Image.open(tmp_path / "partition.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    blue, orange = (int((pixels == colour).all(axis=1).sum()) for colour in ([31, 119, 180], [255, 127, 14]))
    # The keys of the legend add the same few pixels to both.
    assert 2.6 < orange / blue < 3.1


def test_picture_of_data_without_labels_has_one_colour(tmp_path):
    plot_partition(share_out(3), None, (), tmp_path / "partition.png")
    assert (tmp_path / "partition.png").stat().st_size > 1000


def test_natural_clients_are_drawn_with_their_values(tmp_path):
    columns = {"site": ["a very long name of a hospital somewhere"] * 150 + ["short"] * 150}
    found = partition(PartitionSpec("natural", 0, column="site"), labels=LABELS, columns=columns, seed=0)
    plot_partition(found, LABELS, [str(n) for n in range(30)], tmp_path / "natural.png")
    assert (tmp_path / "natural.png").exists()


def test_plotting_leaves_pyplot_alone(tmp_path):
    from matplotlib import pyplot as plt

    before = plt.get_fignums()
    plot_partition(share_out(2), LABELS, [str(n) for n in range(30)], tmp_path / "partition.png")
    assert plt.get_fignums() == before
