"""DANN and CDAN: adversarial alignment."""
