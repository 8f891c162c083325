package main

import (
	"fmt"
	"math"
	"syscall"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/frontdoor"
)

// descriptors shares the file descriptors of the process among its parts. A node
// that has none left cannot open the next segment of its log, and has to stop. So
// clients get what the node's own files and the other members leave.
type descriptors struct {
	engine  int   // files of the store that are open at the same time
	peers   int64 // connections from other members
	clients int64 // connections from clients, apart from the spare ones
}

const (
	// ownFiles are the log's segments, snapshots being written and sent, the
	// listeners, connections to other members, standard error, and what Go opens
	// for itself.
	ownFiles = 48
	// fewestClients is the number of connections below which a node is of no use.
	fewestClients = 16
)

// shareDescriptors divides limit descriptors. asked is --max-connections, which is
// granted as far as they reach. A limit that is too low to serve anyone is an error.
func shareDescriptors(limit uint64, asked int64) (descriptors, error) {
	if limit > math.MaxInt32 { // also how the kernel says that there is no limit
		limit = math.MaxInt32
	}
	n := int64(limit)
	d := descriptors{
		engine: int(min(max(n/8, 32), 1000)), // 1000 is Pebble's default
		peers:  min(max(n/16, 32), 512),
	}
	others := ownFiles + int64(d.engine) + d.peers + frontdoor.ExtraConnections
	left := n - others
	if left < fewestClients {
		return d, fmt.Errorf("the limit on open files is %d, but a node needs at least %d; raise it (ulimit -n, LimitNOFILE= in a systemd unit, ulimits in compose.yaml)",
			limit, others+fewestClients)
	}
	d.clients = left
	if asked != 0 {
		d.clients = min(d.clients, asked)
	}
	return d, nil
}

// openFilesLimit returns the number of files that the process may have open. Go
// raises the soft limit to the hard one when a program starts; doing it here too
// does not depend on that.
func openFilesLimit() (uint64, error) {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil {
		return 0, fmt.Errorf("read the limit on open files: %w", err)
	}
	if r.Cur < r.Max {
		raised := syscall.Rlimit{Cur: r.Max, Max: r.Max}
		if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &raised) == nil {
			r = raised
		}
	}
	return r.Cur, nil
}

// limitDescriptors shares what the process may open, and logs where clients get
// fewer connections than the operator asked for.
func limitDescriptors(asked int64, log *zap.Logger) (descriptors, error) {
	limit, err := openFilesLimit()
	if err != nil {
		return descriptors{}, err
	}
	d, err := shareDescriptors(limit, asked)
	if err != nil {
		return d, usageError{err}
	}
	if d.clients < asked {
		log.Warn("fewer client connections than --max-connections, to leave files for the node itself; raise the limit on open files",
			zap.Uint64("open_files_limit", limit), zap.Int64("max_connections", asked), zap.Int64("client_connections", d.clients))
	}
	return d, nil
}
