"""The parts of the AWS provider."""
