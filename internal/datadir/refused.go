package datadir

import "fmt"

// RefusedError says that a data directory must not be used, because it no longer
// proves what its member has promised to the others. The process exits with
// code 3, and nothing is deleted or repaired (D5).
type RefusedError struct {
	File   string // or directory
	Offset int64  // in bytes; 0 if it is about the file as a whole
	Reason string
	Remedy string
	// Cause is the error that revealed it, or nil.
	Cause error
}

// RemoveAndReAdd is the remedy for a member that cannot keep its promises.
const RemoveAndReAdd = "remove and re-add this member. Keep the directory for analysis, " +
	"remove the member from the cluster (DELETE /v1/members/ID on another member), " +
	"and add this machine under a new id with an empty directory"

// Error names the place, the reason and the remedy.
func (e *RefusedError) Error() string { return "data directory refused: " + e.verdict() }

func (e *RefusedError) verdict() string {
	where := e.File
	if e.Offset > 0 {
		where = fmt.Sprintf("%s at byte %d", e.File, e.Offset)
	}
	return fmt.Sprintf("%s: %s. Remedy: %s", where, e.Reason, e.Remedy)
}

// Unwrap returns the cause.
func (e *RefusedError) Unwrap() error { return e.Cause }

func refuse(file, format string, args ...any) *RefusedError {
	return &RefusedError{File: file, Reason: fmt.Sprintf(format, args...), Remedy: RemoveAndReAdd}
}
