import threading
import time

import pytest

from data.images.room import UNCOUNTED_BYTES, Room


def most_at_once(room: Room, wanted: int, threads: int = 8) -> int:
    lock, now, most = threading.Lock(), [0], [0]

    def decode() -> None:
        with room.taking(wanted):
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            time.sleep(0.03)
            with lock:
                now[0] -= 1

    all_threads = [threading.Thread(target=decode) for _ in range(threads)]
    for thread in all_threads:
        thread.start()
    for thread in all_threads:
        thread.join(10)
    return most[0]


@pytest.mark.parametrize(
    ("wanted", "at_once"),
    [(UNCOUNTED_BYTES, 8), (UNCOUNTED_BYTES + 1, 3), (2 * UNCOUNTED_BYTES, 2), (100 * UNCOUNTED_BYTES, 1)],
)
def test_large_images_wait_for_each_other(wanted, at_once):
    assert most_at_once(Room(4 * UNCOUNTED_BYTES), wanted) == at_once


def test_room_is_free_again_after_an_error():
    room = Room(2 * UNCOUNTED_BYTES)
    for _ in range(3):
        with pytest.raises(ValueError, match="damaged"), room.taking(2 * UNCOUNTED_BYTES):
            raise ValueError("damaged")
