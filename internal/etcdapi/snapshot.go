package etcdapi

import (
	"bufio"
	"context"
	"crypto/sha256"
	"hash"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/kvd-io/kvd/internal/padded"
	"github.com/kvd-io/kvd/internal/rights"
)

const (
	// maxSnapshots bounds the snapshots that are being sent: each reads the whole state.
	maxSnapshots = 4
	// snapshotBlob is the size of the pieces in which a snapshot is sent, as in etcd.
	snapshotBlob = 32 << 10
)

// Snapshot implements pb.MaintenanceServer. The body is kvd's, for kvd snapshot restore, in
// the form of package padded; the last message is the SHA-256 of all before.
func (s *maintenanceService) Snapshot(_ *pb.SnapshotRequest, stream pb.Maintenance_SnapshotServer) error {
	if !s.snapshots.Try() {
		return rpctypes.ErrGRPCRequestTooManyRequests
	}
	defer s.snapshots.Leave()
	ctx := stream.Context()
	out := &snapshotStream{Server: s.Server, ctx: ctx, stream: stream, sum: sha256.New()}
	buffered := bufio.NewWriterSize(out, snapshotBlob)
	if err := s.opts.Inspector.Snapshot(ctx, buffered); err != nil {
		return err
	}
	if err := buffered.Flush(); err != nil {
		return err
	}
	if _, err := out.Write(padded.Padding(out.sent)); err != nil {
		return err
	}
	return stream.Send(&pb.SnapshotResponse{Blob: out.sum.Sum(nil), Version: StorageVersion})
}

// snapshotStream sends what is written to it. The goroutine of the call owns it.
type snapshotStream struct {
	*Server
	ctx    context.Context //nolint:containedctx // it lives as long as the call
	stream pb.Maintenance_SnapshotServer
	sum    hash.Hash
	sent   int64
}

// Write implements io.Writer. gRPC may keep a message after Send, so each has its own
// bytes.
func (o *snapshotStream) Write(p []byte) (int, error) {
	if o.sent == 0 { // what the snapshot has may be newer than the rights at the beginning
		if err := o.allow(o.ctx, rights.Need{Capability: rights.Backup}); err != nil {
			return 0, err
		}
	}
	for rest := p; len(rest) > 0; {
		if err := o.ctx.Err(); err != nil {
			return 0, err
		}
		blob := append([]byte(nil), rest[:min(len(rest), snapshotBlob)]...)
		rest = rest[len(blob):]
		_, _ = o.sum.Write(blob) // a hash never fails
		o.sent += int64(len(blob))
		if err := o.stream.Send(&pb.SnapshotResponse{Blob: blob, Version: StorageVersion}); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}
