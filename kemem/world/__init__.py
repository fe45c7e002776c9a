"""A generator of text whose every fact is known: the ground truth of the book."""

from kemem.world.facts import Fact
from kemem.world.ground import Composition, Entity
from kemem.world.relation import KINDS, PARTS, SPLITS, Relation
from kemem.world.relations import RELATIONS
from kemem.world.world import World

__all__ = ["KINDS", "PARTS", "RELATIONS", "SPLITS", "Composition", "Entity", "Fact", "Relation", "World"]
