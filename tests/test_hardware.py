import pytest

from pixtok.hardware import peak


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [("TPU v5 lite", 197), ("TPU v5p", 459), ("TPU7x", 1153.5), ("NVIDIA H100 80GB HBM3", 989.5), ("cpu", None)],
)
def test_the_longest_name_that_a_device_begins_with_tells_its_peak(kind, tflops):
    assert peak(kind) == (None if tflops is None else tflops * 1e12)
