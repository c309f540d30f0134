"""MetaWorld's 50 tasks (version 3) in words. MetaWorld ships none: LeRobot has published sentences, and these are ours."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskWords:
    """One task in words.

    Attributes:
        instruction: Sentence for the policy, and the thought once the hand is at the object.
        object: What the hand has to reach first, empty where the task is to reach a point.
    """

    instruction: str
    object: str


TASK_WORDS: dict[str, TaskWords] = {
    name: TaskWords(instruction, item)
    for name, instruction, item in (
        ("assembly-v3", "pick up the ring and put it on the peg", "ring"),
        ("basketball-v3", "dunk the basketball into the basket", "basketball"),
        ("bin-picking-v3", "move the cube from one bin to the other", "cube"),
        ("box-close-v3", "pick up the lid and close the box with it", "lid"),
        ("button-press-topdown-v3", "press the button from above", "button"),
        ("button-press-topdown-wall-v3", "press the button behind the wall from above", "button"),
        ("button-press-v3", "press the button", "button"),
        ("button-press-wall-v3", "press the button behind the wall", "button"),
        ("coffee-button-v3", "press the button of the coffee machine", "coffee button"),
        ("coffee-pull-v3", "pull the mug away from the coffee machine", "mug"),
        ("coffee-push-v3", "push the mug under the coffee machine", "mug"),
        ("dial-turn-v3", "turn the dial", "dial"),
        ("disassemble-v3", "pick up the ring and take it off the peg", "ring"),
        ("door-close-v3", "close the door", "door handle"),
        ("door-lock-v3", "lock the door by turning the lock", "lock"),
        ("door-open-v3", "open the door", "door handle"),
        ("door-unlock-v3", "unlock the door by turning the lock", "lock"),
        ("drawer-close-v3", "close the drawer", "drawer handle"),
        ("drawer-open-v3", "open the drawer", "drawer handle"),
        ("faucet-close-v3", "turn the faucet off", "faucet"),
        ("faucet-open-v3", "turn the faucet on", "faucet"),
        ("hammer-v3", "hammer the nail into the wall", "hammer"),
        ("hand-insert-v3", "put the block into the hole", "block"),
        ("handle-press-side-v3", "press the handle down from the side", "handle"),
        ("handle-press-v3", "press the handle down", "handle"),
        ("handle-pull-side-v3", "pull the handle up from the side", "handle"),
        ("handle-pull-v3", "pull the handle up", "handle"),
        ("lever-pull-v3", "pull the lever up", "lever"),
        ("peg-insert-side-v3", "insert the peg into the hole from the side", "peg"),
        ("peg-unplug-side-v3", "pull the peg out of the hole", "peg"),
        ("pick-out-of-hole-v3", "pick the block out of the hole", "block"),
        ("pick-place-v3", "pick up the block and bring it to the goal", "block"),
        ("pick-place-wall-v3", "pick up the block and bring it over the wall to the goal", "block"),
        ("plate-slide-back-side-v3", "slide the plate back out of the cabinet to the side", "plate"),
        ("plate-slide-back-v3", "slide the plate back out of the cabinet", "plate"),
        ("plate-slide-side-v3", "slide the plate into the cabinet from the side", "plate"),
        ("plate-slide-v3", "slide the plate into the cabinet", "plate"),
        ("push-back-v3", "push the block back to the goal", "block"),
        ("push-v3", "push the puck to the goal", "puck"),
        ("push-wall-v3", "push the block around the wall to the goal", "block"),
        ("reach-v3", "move the hand to the goal", ""),
        ("reach-wall-v3", "move the hand over the wall to the goal", ""),
        ("shelf-place-v3", "pick up the block and put it on the shelf", "block"),
        ("soccer-v3", "push the ball into the net", "ball"),
        ("stick-pull-v3", "pick up the stick and pull the mug with it", "stick"),
        ("stick-push-v3", "pick up the stick and push the mug with it", "stick"),
        ("sweep-into-v3", "sweep the block into the hole", "block"),
        ("sweep-v3", "sweep the block off the table", "block"),
        ("window-close-v3", "close the window", "window handle"),
        ("window-open-v3", "open the window", "window handle"),
    )
}

LEROBOT_SENTENCES: dict[str, str] = {
    "assembly-v3": "Pick up a nut and place it onto a peg",
    "basketball-v3": "Dunk the basketball into the basket",
    "bin-picking-v3": "Grasp the puck from one bin and place it into another bin",
    "box-close-v3": "Grasp the cover and close the box with it",
    "button-press-topdown-v3": "Press a button from the top",
    "button-press-topdown-wall-v3": "Bypass a wall and press a button from the top",
    "button-press-v3": "Press a button",
    "button-press-wall-v3": "Bypass a wall and press a button",
    "coffee-button-v3": "Push a button on the coffee machine",
    "coffee-pull-v3": "Pull a mug from a coffee machine",
    "coffee-push-v3": "Push a mug under a coffee machine",
    "dial-turn-v3": "Rotate a dial 180 degrees",
    "disassemble-v3": "Pick a nut out of a peg",
    "door-close-v3": "Close a door with a revolving joint",
    "door-lock-v3": "Lock the door by rotating the lock clockwise",
    "door-open-v3": "Open a door with a revolving joint",
    "door-unlock-v3": "Unlock the door by rotating the lock counter-clockwise",
    "drawer-close-v3": "Push and close a drawer",
    "drawer-open-v3": "Open a drawer",
    "faucet-close-v3": "Rotate the faucet clockwise",
    "faucet-open-v3": "Rotate the faucet counter-clockwise",
    "hammer-v3": "Hammer a screw on the wall",
    "hand-insert-v3": "Insert the gripper into a hole",
    "handle-press-side-v3": "Press a handle down sideways",
    "handle-press-v3": "Press a handle down",
    "handle-pull-side-v3": "Pull a handle up sideways",
    "handle-pull-v3": "Pull a handle up",
    "lever-pull-v3": "Pull a lever down 90 degrees",
    "peg-insert-side-v3": "Insert a peg sideways",
    "peg-unplug-side-v3": "Unplug a peg sideways",
    "pick-out-of-hole-v3": "Pick up a puck from a hole",
    "pick-place-v3": "Pick and place a puck to a goal",
    "pick-place-wall-v3": "Pick a puck, bypass a wall and place the puck",
    "plate-slide-back-side-v3": "Get a plate from the cabinet sideways",
    "plate-slide-back-v3": "Get a plate from the cabinet",
    "plate-slide-side-v3": "Slide a plate into a cabinet sideways",
    "plate-slide-v3": "Slide a plate into a cabinet",
    "push-back-v3": "Push the puck to a goal",
    "push-v3": "Push the puck to a goal",
    "push-wall-v3": "Bypass a wall and push a puck to a goal",
    "reach-v3": "Reach a goal position",
    "reach-wall-v3": "Bypass a wall and reach a goal",
    "shelf-place-v3": "Pick and place a puck onto a shelf",
    "soccer-v3": "Kick a soccer into the goal",
    "stick-pull-v3": "Grasp a stick and pull a box with the stick",
    "stick-push-v3": "Grasp a stick and push a box using the stick",
    "sweep-into-v3": "Sweep a puck into a hole",
    "sweep-v3": "Sweep a puck off the table",
    "window-close-v3": "Push and close a window",
    "window-open-v3": "Push and open a window",
}
"""Of LeRobot's `metaworld_config.json`, hence of datasets and checkpoints made with it. `push-back-v3` asks as `push-v3`."""

SENTENCES = ("lerobot", "plain")

_HARDER = {
    "medium": "basketball bin-picking box-close coffee-pull coffee-push hammer peg-insert-side push-wall soccer sweep "
    "sweep-into",
    "hard": "assembly hand-insert pick-out-of-hole pick-place push push-back",
    "very_hard": "shelf-place disassemble stick-pull stick-push pick-place-wall",
}
DIFFICULTIES: dict[str, tuple[str, ...]] = {
    name: tuple(f"{task}-v3" for task in tasks.split()) for name, tasks in _HARDER.items()
}
"""Difficulty by which MetaWorld is reported (Seo et al. 2022, "Masked World Models"), as in LeRobot."""

DIFFICULTIES["easy"] = tuple(name for name in TASK_WORDS if not any(name in tasks for tasks in DIFFICULTIES.values()))
