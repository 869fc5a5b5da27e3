"""The rules of a rollout on numbers alone: R2, R3 and that it ends."""

from hypothesis import given, settings
from hypothesis import strategies as st

from disagg_operator.rollout import RoleCounts, Side, advance

BOUNDS = st.tuples(st.integers(1, 3), st.integers(0, 3))
SIZE = st.integers(1, 6)


def counts(desired, surge, unavailable, *, old, new, ready, routed):
    return RoleCounts(
        desired=desired,
        surge=surge,
        unavailable=min(unavailable, desired),
        old=Side(present=old, serving=old),
        new=Side(present=new, serving=ready if routed else 0),
        new_ready=ready,
    )


def test_first_revision_comes_up_all_at_once():
    role = counts(4, 1, 0, old=0, new=0, ready=0, routed=False)
    assert advance({"prefill": role, "decode": role}, skew=1).new == {"prefill": 4, "decode": 4}


def test_nothing_old_goes_before_a_new_pair_serves():
    role = counts(2, 1, 0, old=2, new=1, ready=1, routed=False)
    assert advance({"prefill": role, "decode": role}, skew=1).old == {"prefill": 2, "decode": 2}


def test_last_prefill_group_stays_while_its_decode_groups_serve():
    prefill = counts(1, 1, 0, old=1, new=1, ready=1, routed=True)
    decode = counts(3, 1, 0, old=3, new=1, ready=1, routed=True)
    targets = advance({"prefill": prefill, "decode": decode}, skew=1)
    assert targets.old == {"prefill": 1, "decode": 2}


def test_stalled_rollout_neither_grows_nor_takes_away():
    role = counts(3, 1, 0, old=2, new=1, ready=1, routed=True)
    targets = advance({"prefill": role, "decode": role}, skew=1, stalled=True)
    assert (targets.new, targets.old) == ({"prefill": 1, "decode": 1}, {"prefill": 2, "decode": 2})


class World:
    """Two roles of a rollout; the controller's targets are carried out one event at a time."""

    def __init__(self, desired, surge, unavailable):
        self.desired, self.surge = desired, surge
        self.unavailable = {name: min(unavailable, n) for name, n in desired.items()}
        self.old = dict(desired)
        self.new = dict.fromkeys(desired, 0)
        self.ready = dict.fromkeys(desired, 0)

    @property
    def routed(self):
        return all(self.ready.values())

    def capacity(self, name):
        old = self.old[name] if all(self.old.values()) else 0
        return old + (self.ready[name] if self.routed else 0)

    def targets(self, skew):
        return advance(
            {
                name: counts(
                    n,
                    self.surge,
                    self.unavailable[name],
                    old=self.old[name],
                    new=self.new[name],
                    ready=self.ready[name],
                    routed=self.routed,
                )
                for name, n in self.desired.items()
            },
            skew=skew,
        )

    def moves(self, targets):
        for name in self.desired:
            if self.ready[name] < self.new[name]:
                yield ("ready", name)
            if self.new[name] < targets.new[name]:
                yield ("create", name)
        if any(self.old[name] > targets.old[name] for name in self.desired):
            yield ("delete", "")

    def carry_out(self, move, targets):
        what, name = move
        if what == "ready":
            self.ready[name] += 1
        elif what == "create":
            self.new[name] += 1
        else:
            self.old = {name: min(n, targets.old[name]) for name, n in self.old.items()}


@settings(max_examples=120)
@given(
    prefill=SIZE,
    decode=SIZE,
    bounds=BOUNDS,
    skew=st.integers(1, 3),
    choices=st.lists(st.integers(0, 9), min_size=60, max_size=60),
)
def test_every_rollout_keeps_its_bounds_and_ends(prefill, decode, bounds, skew, choices):
    surge, unavailable = bounds
    world = World({"prefill": prefill, "decode": decode}, surge, unavailable)
    steps = max(prefill, decode)
    for choice in choices:
        targets = world.targets(skew)
        moves = list(world.moves(targets))
        if not moves:
            break
        world.carry_out(moves[choice % len(moves)], targets)
        for name, desired in world.desired.items():
            assert world.old[name] + world.new[name] <= desired + surge
            assert world.capacity(name) >= desired - world.unavailable[name]
            behind = min(world.ready[other] * steps // n for other, n in world.desired.items())
            alone = not any(world.old.values())
            assert alone or world.new[name] <= -(-(behind + skew) * desired // steps)
    assert world.old == {"prefill": 0, "decode": 0}
    assert world.ready == world.desired
