import pytest

from lmseg_jax.datasets.class_names import color_names, id_names
from lmseg_jax.errors import UserError


@pytest.fixture
def write(tmp_path):
    def file(text):
        path = tmp_path / "names.txt"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return file


@pytest.mark.parametrize(
    ("text", "present", "expected"),
    [
        ("sky\nroad\n\ncar\n", [0, 2], {0: "sky", 1: "road", 2: "car"}),
        ("sky\ncar\n", [0, 255], {0: "sky", 255: "car"}),
        ("7 traffic light\n24: person\n", [7, 24], {7: "traffic light", 24: "person"}),
        ("\ufeff0,sky\n1=straße\n", [0, 1], {0: "sky", 1: "straße"}),
    ],
)
def test_names_of_ids(write, text, present, expected):
    assert id_names(write(text), present) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\nc\n", 'has 3 names, but labels hold the 2 ids 4, 9; write "id name"'),
        ("4 a\nb\n", "line 2: 'b'; expected \"id name\""),
        ("4 a\n9 A\n", "line 2: 'a' is in line 1 as well"),
        ("4 a\n4 b\n", "line 2: 4 is in line 1 as well"),
        ("\n", "is empty; expected one name a line"),
    ],
)
def test_names_that_do_not_fit_are_an_error(write, text, message):
    with pytest.raises(UserError, match=message):
        id_names(write(text), [4, 9])


def test_names_of_colours(write):
    path = write("128 64 128\troad\n0, 0, 142, car\n")
    assert color_names(path) == {0x804080: "road", 0x00008E: "car"}
    with pytest.raises(UserError, match='line 1: .*expected "red green blue name"'):
        color_names(write("road\n"))
    with pytest.raises(UserError, match="line 1"):
        color_names(write("300 0 0 road\n"))


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(UserError, match="--names .*cannot read this file"):
        id_names(str(tmp_path / "none.txt"), [0])
