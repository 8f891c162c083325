package engine

import (
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
)

// ErrDamaged means that files of the engine are missing or were changed on disk. A
// restart does not help: their owner must fill a new engine from elsewhere.
var ErrDamaged = errors.New("the files of the engine are damaged")

// IsDamage reports whether the error comes from damaged files.
func IsDamage(err error) bool {
	return errors.Is(err, ErrDamaged) || pebble.IsCorruptionError(err)
}

// circumstances are the errors of an operating system in which the same files could
// be read at another time, or by somebody else.
var circumstances = []syscall.Errno{
	syscall.EACCES, syscall.EPERM, syscall.EROFS, syscall.ENOSPC, syscall.EDQUOT, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EAGAIN,
}

// damage marks an error met while existing files were opened as damage, unless the
// circumstances explain it, or the disk did not take something that was to be written:
// a start may write, and the next one may succeed. Pebble reports a missing or an unreadable file in many
// ways, and few of them are marked as corruption.
func damage(err error) error {
	if err == nil || IsDamage(err) || errors.Is(err, errUnwritten) || slices.ContainsFunc(circumstances, func(e syscall.Errno) bool { return errors.Is(err, e) }) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}
