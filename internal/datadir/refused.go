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

// RebuildStore is the remedy for a member whose store is lost or damaged. What the
// member has promised to the others is in its log, which is whole.
const RebuildStore = "start this member once with --rebuild-store, which moves the store aside (nothing is deleted) " +
	"and fills a new one from the log or, if the log does not reach back far enough, from another member. If no member has the data, " + RemoveAndReAdd

// RefuseStore returns the refusal of a store.
func RefuseStore(dir, reason string, cause error) *RefusedError {
	return &RefusedError{File: StorePath(dir), Reason: reason, Remedy: RebuildStore, Cause: cause}
}

// RefuseForeignState returns the refusal of a directory whose state, in the store or in a
// snapshot, is of another cluster than its log.
func RefuseForeignState(dir string, state, log uint64) *RefusedError {
	return &RefusedError{File: dir, Reason: fmt.Sprintf("the store belongs to cluster %016x, but the log belongs to cluster %016x", state, log), Remedy: RemoveAndReAdd}
}

// Error names the place, the reason and the remedy.
func (e *RefusedError) Error() string { return "data directory refused: " + e.verdict() }

func (e *RefusedError) verdict() string {
	where := e.File
	if e.Offset > 0 {
		where = fmt.Sprintf("%s at byte %d", e.File, e.Offset)
	}
	text := fmt.Sprintf("%s: %s. Remedy: %s", where, e.Reason, e.Remedy)
	if e.Remedy == RebuildStore && e.Cause != nil {
		text += fmt.Sprintf(". Cause: %v", e.Cause)
	}
	return text
}

// Unwrap returns the cause.
func (e *RefusedError) Unwrap() error { return e.Cause }

func refuse(file, format string, args ...any) *RefusedError {
	return &RefusedError{File: file, Reason: fmt.Sprintf(format, args...), Remedy: RemoveAndReAdd}
}
