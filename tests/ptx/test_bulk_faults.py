"""Planted faults around mbarriers and bulk copies: each kernel does one thing wrong."""

from __future__ import annotations

import numpy as np
import pytest
from abqc.runtime.ptx import PtxFault
from bulk_kernel import (
    EXPECT,
    IN,
    INIT,
    LOAD,
    OUT,
    WAIT,
    box_load,
    coordinates,
    run,
    text_of,
)

SIZE = 256
DATA = np.arange(SIZE, dtype=np.uint8)
EXPECTED, LOADED = EXPECT.format(bytes=SIZE), LOAD.format(bytes=SIZE)
RIGHT = f"{INIT}\n{EXPECTED}\n{LOADED}\n{WAIT}\n{OUT}"
STORE = "@%leader cp.async.bulk.global.shared::cta.bulk_group [%out], [%s], 256;"
COMMIT = "@%leader cp.async.bulk.commit_group;"
WAIT_AGAIN = WAIT.replace("wait:", "again:").replace("bra wait", "bra again")
WAIT_AGAIN = WAIT_AGAIN.replace("[%m], 0", "[%m], 1")
READ = "@%leader cp.async.bulk.wait_group.read 0;"


def fault_of(body: str, match: str, tensor: tuple | None = None) -> PtxFault:
    """The fault, at the line that `// here` marks."""
    with pytest.raises(PtxFault, match=match) as caught:
        run(body, SIZE, DATA, SIZE, tensor)
    lines = text_of(body, SIZE).split("\n")
    if marked := [number for number, line in enumerate(lines, 1) if "// here" in line]:
        assert [caught.value.line] == marked, caught.value
    return caught.value


def replaced(old: str, new: str, body: str = RIGHT) -> str:
    assert body.count(old) == 1
    return body.replace(old, new)


def test_the_frame_is_right() -> None:
    assert (run(RIGHT, SIZE, DATA, SIZE) == DATA).all()


# -- copies into shared memory --------------------------------------------------------------------


def test_read_before_the_wait() -> None:
    body = replaced(WAIT, "", RIGHT).replace("%x, [%y];", "%x, [%y]; // here")
    fault_of(body, "a bulk copy writes it")


def test_read_although_the_test_failed() -> None:
    body = replaced("@!%done bra wait;", "").replace("%x, [%y];", "%x, [%y]; // here")
    fault_of(body, "a bulk copy writes it")


def test_wait_for_the_other_parity() -> None:
    body = replaced("%done, [%m], 0", "%done, [%m], 1").replace("%x, [%y];", "%x, [%y]; // here")
    fault_of(body, "a bulk copy writes it")


def test_write_while_the_copy_is_in_flight() -> None:
    fault_of(replaced(WAIT, "st.shared.b32 [%s], 0; // here"), "a bulk copy writes it")


def test_too_many_bytes_expected() -> None:
    fault = fault_of(replaced(EXPECTED, EXPECT.format(bytes=SIZE + 16)), "nothing can go on")
    assert "16 bytes pending in phase 0" in fault.reason


def test_too_few_bytes_expected() -> None:
    body = replaced(EXPECTED, EXPECT.format(bytes=SIZE - 16)).replace(LOADED, f"{LOADED} // here")
    fault_of(body, "brings 16 bytes more")


def test_no_bytes_expected() -> None:
    arrive = "@%leader mbarrier.arrive.shared::cta.b64 %state, [%m];"
    body = replaced(EXPECTED, arrive).replace("%x, [%y];", "%x, [%y]; // here")
    fault_of(body, "a bulk copy writes it")
    body = f"{INIT}\n{LOADED} // here\n{arrive}\n{WAIT}\n{WAIT_AGAIN}"
    fault_of(body, "after phase 0")


def test_initialization_that_the_proxy_does_not_see() -> None:
    body = replaced("@%leader fence.mbarrier_init.release.cluster;", "")
    fault_of(body.replace(LOADED, f"{LOADED} // here"), "initialization .* is not yet visible")


def test_copy_over_what_was_written_without_a_proxy_fence() -> None:
    body = f"{IN}\n{INIT}\n{EXPECTED}\n{LOADED} // here\n{WAIT}\n{OUT}"
    fault_of(body, "no fence.proxy.async")


def test_copy_over_what_others_still_read() -> None:
    again = EXPECTED + LOADED
    body = f"{INIT}\n{EXPECTED}\n{LOADED}\n{WAIT}\n{OUT}\n{EXPECTED}\n{LOADED} // here"
    fault_of(body, "copies over what")
    right = f"{INIT}\n{EXPECTED}\n{LOADED}\n{WAIT}\n{OUT}\nbar.sync 0;\n{again}\n"
    right += (
        WAIT.replace("wait", "second").replace("try_second", "try_wait").replace("], 0", "], 1")
    )
    assert (run(right, SIZE, DATA, SIZE) == DATA).all()


def test_the_kernel_ends_while_a_copy_is_in_flight() -> None:
    fault_of(f"{INIT}\n{EXPECTED}\n{LOADED} // here", "ends while this bulk copy into shared")


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("[%s], [%input], 256", "[%s+8], [%input], 256", "no multiple of 16"),
        ("[%s], [%input], 256", "[%s], [%input+4], 256", "no multiple of 16"),
        ("[%s], [%input], 256", "[%s], [%input], 250", "no multiple of 16"),
        ("[%s], [%input], 256", "[%s], [%input+16], 256", "outside of any allocation"),
        ("[%s], [%input], 256", "[%s+1024], [%input], 256", "out of bounds"),
    ],
)
def test_where_a_copy_goes(old: str, new: str, match: str) -> None:
    fault_of(replaced(old, new).replace(f"{new}, [%m];", f"{new}, [%m]; // here"), match)


# -- copies out of shared memory ------------------------------------------------------------------


def test_store_of_what_was_written_without_a_proxy_fence() -> None:
    fault_of(f"{IN}\nbar.sync 0;\n{STORE} // here\n{COMMIT}\n{READ}", "no fence.proxy.async")


def test_store_of_what_others_still_write() -> None:
    fault_of(f"{IN}\nfence.proxy.async;\n{STORE} // here\n{COMMIT}\n{READ}", "race in shared")


def test_write_before_the_store_has_read() -> None:
    body = f"{IN}\nfence.proxy.async;\nbar.sync 0;\n{STORE}\n{COMMIT}\n"
    late = "@%leader st.shared.b32 [%s], 5;"
    fault_of(f"{body}{late} // here\n{READ}", "a bulk copy reads it")
    run(f"{body}{READ}\n{late}", SIZE, DATA, SIZE)


def test_the_kernel_ends_before_the_store_has_read() -> None:
    body = f"{IN}\nfence.proxy.async;\nbar.sync 0;\n{STORE} // here\n{COMMIT}\n"
    fault_of(body, "may still read shared memory")
    fault_of(f"{body}{READ.replace('0', '1')}", "may still read shared memory")


# -- mbarriers ------------------------------------------------------------------------------------


def test_mbarrier_that_nobody_initialized() -> None:
    fault_of(f"{EXPECTED} // here", "no mbarrier was initialized")


def test_initialization_without_a_barrier() -> None:
    body = (
        replaced("    bar.sync 0;\n", "", INIT) + "mbarrier.arrive.shared.b64 %state, [%m]; // here"
    )
    fault_of(body, "is not ordered before")


def test_two_initializations() -> None:
    init = "@%leader mbarrier.init.shared::cta.b64 [%m], 1;"
    fault_of(f"{init}\n{init} // here", "already is one")
    run(f"{init}\n@%leader mbarrier.inval.shared.b64 [%m];\n{init}", SIZE, DATA, SIZE)


def test_more_arrivals_than_expected() -> None:
    arrive = "@%leader mbarrier.arrive.shared.b64 %state, [%m], 2; // here"
    fault_of(f"{INIT}\n{arrive}", "2 arrivals at an mbarrier that has 1 pending")


def test_arrival_that_must_not_complete() -> None:
    arrive = "@%leader mbarrier.arrive.noComplete.shared.b64 %state, [%m], 1; // here"
    fault_of(f"{INIT}\n{arrive}", "noComplete completes")


@pytest.mark.parametrize("count", [0, 1 << 20])
def test_count_of_an_mbarrier(count: int) -> None:
    fault_of(f"@%leader mbarrier.init.shared.b64 [%m], {count}; // here", "an mbarrier for")


def test_misaligned_mbarrier() -> None:
    fault_of("@%leader mbarrier.init.shared.b64 [%m+4], 1; // here", "no multiple of 8")


def test_mbarrier_that_is_read_as_memory() -> None:
    fault_of(f"{INIT}\nld.shared.b32 %x, [%m]; // here", "an mbarrier lies there|never written")
    fault_of(f"{INIT}\nst.shared.b32 [%m], 1; // here", "an mbarrier lies there")


def test_wait_that_nobody_ends() -> None:
    fault = fault_of(f"{INIT}\n{WAIT}", "nothing can go on")
    assert "has 1 of 1 arrivals and 0 bytes pending in phase 0" in fault.reason


# -- tensor maps ----------------------------------------------------------------------------------

TENSOR = (0, (16, 16), (16,), (16, 16), (1, 1))
BOX = f"{INIT}\n{coordinates(0, 0)}\n{EXPECTED}\n{box_load(2)} // here\n{WAIT}\n{OUT}"


def test_box_of_a_map_is_right() -> None:
    assert (run(BOX, SIZE, DATA, SIZE, TENSOR) == DATA).all()


def test_bytes_that_are_no_map() -> None:
    fault_of(BOX, "are no tensor map")


def test_map_at_an_odd_place() -> None:
    fault_of(
        replaced("[%map, ", "[%input, ", BOX).replace(
            "%c0, 0;", "%c0, 0; add.u64 %input, %input, 16;"
        ),
        "a tensor map at",
    )


def test_box_at_an_odd_place() -> None:
    fault_of(replaced("[%s], [%map", "[%s+16], [%map", BOX), "no multiple of 128", TENSOR)


def test_coordinates_of_another_rank() -> None:
    fault_of(replaced(box_load(2), box_load(3), BOX), "3 coordinates in a tensor of 2", TENSOR)


def test_map_of_more_than_there_is() -> None:
    body = replaced("%c1, 0;", "%c1, 1;", BOX)
    fault_of(body, "outside of any allocation", (0, (16, 17), (16,), (16, 16), (1, 1)))
