"""Claims about the servers of a teacher: addresses or a file's rows, and each wrong one is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.collecting.asking import AS_IT_IS, Asking, extra_body_of
from distill.endpoints.server_list import is_server_list, servers_of
from distill.endpoints.servers.server import ServerSettings
from toolkit.errors import InputError
from toolkit.records import Problem

A, B = "http://127.0.0.1:8001/v1", "http://127.0.0.1:8002/v1"


def test_addresses_take_the_options_and_rows_may_say_otherwise(tmp_path: Path) -> None:
    options = {"concurrency": 32, "price_out": 2.0, "price_in": None}
    assert servers_of([f"{A}#m", B], options) == (
        ServerSettings(url=A, model="m", concurrency=32, price_out=2.0),
        ServerSettings(url=B, model="", concurrency=32, price_out=2.0),
    )
    table = tmp_path / "servers.csv"
    table.write_text(f"url,model,weight,concurrency,price_out,key\n{A},m,2,,0.5,OTHER_KEY\n{B}#m,,,8,,\n")
    assert is_server_list(str(table)) and not is_server_list(A)
    first, second = servers_of([str(table)], options)
    assert first == ServerSettings(url=A, model="m", weight=2.0, concurrency=32, price_out=0.5, key="OTHER_KEY")
    assert second == ServerSettings(url=B, model="m", concurrency=8, price_out=2.0)
    assert (first.most, second.most) == (64, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"url,prize_in\n{A},1\n", "line 2 has an unknown column 'prize_in'; did you mean 'price_in'?"),
        (f"url,price_in\n{A},cheap\n", "has the price_in 'cheap'; it must be a number from 0"),
        (f"url,price_in\n{A},-1\n", "has the price_in '-1'"),
        (f"url,concurrency\n{A},5000\n", "has the concurrency '5000'; it must be a number from 1 to 1024"),
        (f"url,concurrency\n{A},2.5\n", "has the concurrency '2.5'"),
        (f"url,weight\n{A},inf\n", "has the weight"),
        (f"url,weight\n{A},1\n,2\n", "line 3 has no url"),
        (f"url,model\n{A}#a,b\n", "names two models, 'a' and 'b'"),
        (f"url\n{A}\n{A}\n", "is given twice"),
        ("url\nnonsense\n", "line 2 has the url 'nonsense'; it must begin with http"),
        ("url\n", "has no row"),
        ("url\nhttp://me:secret@host/v1\n", "neither a password"),
    ],
)
def test_a_wrong_row_is_one_line_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    table = tmp_path / "servers.csv"
    table.write_text(text)
    with pytest.raises(InputError) as caught:
        servers_of([str(table)], {})
    assert message in str(caught.value) and "secret" not in str(caught.value)


def test_questions_are_put_as_asked_and_what_keeps_its_default_is_no_part_of_the_request() -> None:
    problem = Problem.create(family="user", question="1+1?", answer="2")
    known = Problem.create(family="user", question="1+1?", answer="2", history=[{"role": "system", "content": "Own."}])
    assert AS_IT_IS.messages(problem) == problem.messages and AS_IT_IS.given() == {}
    asking = Asking(system="Be brief.", template="Q: {question}\nA:", thinking=False)
    user = {"role": "user", "content": "Q: 1+1?\nA:"}
    assert asking.messages(problem) == [{"role": "system", "content": "Be brief."}, user]
    assert asking.messages(known) == [{"role": "system", "content": "Own."}, user], "a problem's own prompt stays"
    assert asking.given() == {"system": "Be brief.", "template": "Q: {question}\nA:", "thinking": False}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Asking(template="Solve it"), r"has no \{question\}"),
        (lambda: Asking(top_logprobs=21), r"\(21\) must be from 0 to 20"),
        (lambda: Asking(extra_body={"temperature": 1}), "use --temperature"),
        (lambda: extra_body_of("{top_a: 1}"), "is no JSON"),
        (lambda: extra_body_of("[1]"), "must be a JSON object"),
    ],
)
def test_a_wrong_way_of_asking_is_one_line(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]
