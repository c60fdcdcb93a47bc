"""The gateway: the AWS endpoint and the public HTTP triggers, without any privilege."""
