package engine

// Verifier is an engine whose files can be checked for damage that no request has hit yet.
// The engine on disk implements it.
type Verifier interface {
	// Files lists the live files by ascending number, which is the order in which they
	// were written. The generation changes when Replace refills the engine.
	Files() (generation uint64, files []File, err error)
	// Verify reads a whole file and verifies all its checksums. It bypasses the page cache
	// if the operating system supports that. Before it reads n bytes, it calls pace(n), and
	// stops if that returns an error. If the file is damaged, IsDamage holds for the error.
	// For a file that has been removed, it returns nil.
	Verify(file File, pace func(n int) error) error
}

// File is one of the engine's files.
type File struct {
	Name   string // below the engine's directory
	Number uint64
	Bytes  int64
}
