package node

import (
	"context"
	"fmt"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/access"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/rights"
)

// NewGate returns the gate before the node's data, by the users of its store. The options
// say how credentials are judged; what the gate reads and changes is filled in. The users
// are not known until the node serves.
func NewGate(n *Node, opts access.Options) *access.Gate {
	opts.Tables = func() *rights.Tables {
		select {
		case <-n.Ready():
			return n.store.Rights()
		default:
			return nil
		}
	}
	opts.Changed = func() <-chan struct{} { return kvstore.RightsChanged(n.store) }
	opts.EachBound = func(lease uint64, fn func(rights.Space, []byte) bool) error {
		return kvstore.EachBound(n.store, lease, fn)
	}
	opts.Change = func(ctx context.Context, c *rights.Change) error {
		// Nobody asked for it but the cluster itself.
		cmd := &kvstore.Command{Op: kvstore.OpRights, Rights: c, Origin: kvstore.Origin{Principal: rights.Root}}
		res, err := n.Do(ctx, cmd, nil)
		if err == nil && res.Outcome != kvstore.OK {
			err = fmt.Errorf("the change was refused: %s", res.Detail)
		}
		return err
	}
	return access.New(opts)
}

// logRights returns a function that logs changes of users, roles, and tokens, on every member.
func logRights(lg *zap.Logger) func(did []string, revision uint64, removed int, by kvstore.Origin) {
	return func(did []string, revision uint64, removed int, by kvstore.Origin) {
		lg.Info("rights changed", zap.Strings("changes", did), zap.Uint64("auth_revision", revision), zap.Int("tokens_removed", removed),
			zap.String("request_id", by.RequestID), zap.String("client", by.Client), zap.String("principal", by.Principal))
	}
}
