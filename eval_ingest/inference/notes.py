"""What was decided while a configuration is resolved: the origin of each value, and warnings."""

from dataclasses import dataclass, field


@dataclass
class Notes:
    """Collects provenance and warnings; handed through the steps of `inference.resolve.resolve`."""

    provenance: dict[str, str] = field(default_factory=dict)
    """Field name to the place it came from."""
    warnings: list[str] = field(default_factory=list)

    def origin(self, name: str, place: str) -> None:
        """Record where the value of a field came from."""
        self.provenance[name] = place

    def warn(self, text: str) -> None:
        """Record a warning, once."""
        if text not in self.warnings:
            self.warnings.append(text)
