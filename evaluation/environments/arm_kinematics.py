"""Forward and inverse kinematics of 6-joint arms on their MuJoCo models."""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np

JOINTS_PER_ARM = 6


def rotation_about_z(angle: float) -> np.ndarray:
    """Rotation matrix (3, 3) of a turn by `angle` radians about z."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Axis times angle (3,) [rad] of a rotation matrix (3, 3)."""
    quaternion, vector = np.empty(4), np.empty(3)
    mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(rotation).reshape(-1))
    mujoco.mju_quat2Vel(vector, quaternion, 1.0)
    return vector


def rotation_matrix(vector: np.ndarray) -> np.ndarray:
    """Rotation matrix (3, 3) of an axis-times-angle vector (3,) [rad]."""
    angle = float(np.linalg.norm(vector))
    quaternion, matrix = np.array([1.0, 0.0, 0.0, 0.0]), np.empty(9)
    if angle > 0:
        mujoco.mju_axisAngle2Quat(quaternion, np.asarray(vector, dtype=float) / angle, angle)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return matrix.reshape(3, 3)


class KinematicChain:
    """Pose of a tool from its joints, and joints from a pose. Does not touch the simulation's state.

    Args:
        model: Compiled model.
        joints: Names of the six hinge joints from the base on; their ranges are respected.
    """

    def __init__(self, model: mujoco.MjModel, joints: Sequence[str]) -> None:
        self._model = model
        self._data = mujoco.MjData(model)
        found = [model.joint(name) for name in joints]
        self._positions = np.array([joint.qposadr[0] for joint in found])
        self._velocities = np.array([joint.dofadr[0] for joint in found])
        self._low, self._high = np.array([joint.range for joint in found]).T
        self._jacobian = np.zeros((6, model.nv))

    def forward(self, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tool point (3,) [m] and tool rotation (3, 3) in the world frame for six joint angles [rad]."""
        self._data.qpos[self._positions] = joints
        mujoco.mj_kinematics(self._model, self._data)
        return self._tool_pose()

    def _tool_pose(self) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError

    def _update_jacobian(self) -> None:
        """Writes the tool's Jacobian, translation above rotation, (6, nv)."""
        raise NotImplementedError

    def inverse(
        self,
        position: np.ndarray,
        rotation: np.ndarray,
        start: np.ndarray,
        *,
        iterations: int = 40,
        tolerance: float = 1e-4,
        damping: float = 0.02,
    ) -> np.ndarray:
        """Joint angles (6,) [rad] that bring the tool to a pose, by damped least squares from `start`.

        Joint limits are respected at every iteration. A pose out of reach gives the nearest that the iterations found.

        Args:
            position: Wanted tool point (3,) [m].
            rotation: Wanted tool rotation (3, 3).
            start: Joint angles to start from (6,); the solution stays on their branch.
            iterations: Upper bound on the steps.
            tolerance: Largest remaining error (m and rad together, Euclidean) to stop at.
            damping: Damping factor; larger is safer near singular poses and slower.
        """
        joints: np.ndarray = np.clip(np.asarray(start, dtype=float), self._low, self._high)
        for _ in range(iterations):
            present, orientation = self.forward(joints)
            error = np.concatenate([position - present, rotation_vector(rotation @ orientation.T)])
            if np.linalg.norm(error) < tolerance:
                break
            mujoco.mj_comPos(self._model, self._data)
            self._update_jacobian()
            jacobian = self._jacobian[:, self._velocities]
            step = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + damping**2 * np.eye(6), error)
            joints = np.clip(joints + np.clip(step, -0.4, 0.4), self._low, self._high)
        return joints


class ArmKinematics(KinematicChain):
    """One of the tabletop's arms.

    Args:
        model: Compiled tabletop model.
        side: "left" or "right".
    """

    def __init__(self, model: mujoco.MjModel, side: str) -> None:
        super().__init__(model, [f"{side}_joint_{i + 1}" for i in range(JOINTS_PER_ARM)])
        self._site = model.site(f"{side}_tcp").id

    def _tool_pose(self) -> tuple[np.ndarray, np.ndarray]:
        return self._data.site_xpos[self._site].copy(), self._data.site_xmat[self._site].reshape(3, 3).copy()

    def _update_jacobian(self) -> None:
        mujoco.mj_jacSite(self._model, self._data, self._jacobian[:3], self._jacobian[3:], self._site)
