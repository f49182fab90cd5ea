"""What would be published: sdist, wheel, crate, command, README."""
