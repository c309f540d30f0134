"""Pictures in the official look against the renderer that each simulator brings, in the same state."""

import numpy as np
import pytest
from simulators import make_or_skip

from syvla.evaluation.environments import EVALUATION_SEED_OFFSET
from syvla.evaluation.environments.graphics import LOOKS

VISIBLE = 16  # levels of 255
TOLERATED = 0.002  # share of pixels that may differ visibly: edges that rasterize otherwise
SIDE = 128


def share_that_differs(ours, theirs):
    return float((np.abs(ours.astype(int) - theirs.astype(int)).max(axis=-1) > VISIBLE).mean())


def gymnasiums_own(env, camera):
    """What MetaWorld and gymnasium-robotics draw with. gym-aloha's dm-control passes MuJoCo's own defaults on as well."""
    from gymnasium.envs.mujoco.mujoco_rendering import OffScreenViewer

    viewer = OffScreenViewer(env.model, env.data, SIDE, SIDE)
    name = env.simulator_cameras.get(camera, camera)
    picture = viewer.render("rgb_array", camera_id=env.model.camera(name).id).copy()
    viewer.free()
    return picture[::-1, ::-1] if name == "corner2" else picture  # which hangs upside down


def liberos_own(env, camera):
    """Of robosuite, as LIBERO sets it up: collision shapes hidden; published results turn its pictures by 180 degrees."""
    from robosuite.utils.binding_utils import MjRenderContextOffscreen

    simulation = env.simulator.sim
    if simulation._render_context_offscreen is None:
        MjRenderContextOffscreen(simulation, device_id=-1).vopt.geomgroup[0] = 0
    return np.asarray(simulation.render(camera_name=camera, width=SIDE, height=SIDE))[::-1, ::-1]


def adroits_own(env, camera):
    """As above, once the bodies stand where the joints are: after a step MuJoCo has them where they were 2 ms before."""
    import mujoco

    mujoco.mj_forward(env.model, env.data)
    return gymnasiums_own(env, camera)


CASES = {
    "metaworld": ("push-v3", gymnasiums_own),
    "aloha": ("transfer_cube", gymnasiums_own),
    "adroit": ("door", adroits_own),
    "libero": ("libero_spatial_0", liberos_own),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_official_pictures_are_the_simulators_own_and_fast_ones_are_not(name):
    task, own = CASES[name]
    differing = {}
    for look in LOOKS:
        env = make_or_skip(name, task, image_size=SIDE, look=look)
        assert env.description["look"].startswith(look)
        env.reset(seed=EVALUATION_SEED_OFFSET)
        for _ in range(3):
            observation, *_ = env.step((env.action_space.low + env.action_space.high) / 2)
        if look == "official":
            theirs = {camera: own(env, camera) for camera in env.cameras}
        differing[look] = [share_that_differs(observation["images"][camera], theirs[camera]) for camera in env.cameras]
        env.close()
    assert max(differing["official"]) <= TOLERATED, differing
    assert max(differing["fast"]) > 10 * TOLERATED, differing


def test_an_unknown_look_is_named():
    with pytest.raises(ValueError, match=r"look: expected one of \['official', 'fast'\], got 'pretty'"):
        make_or_skip("aloha", "transfer_cube", look="pretty")
