"""What the platform keeps: functions, code by digest, triggers, keys and logs."""
