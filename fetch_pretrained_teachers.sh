#!/bin/sh
exec sh "$(dirname "$0")/scripts/fetch_pretrained_teachers.sh" "$@"
