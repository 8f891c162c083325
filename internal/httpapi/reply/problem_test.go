package reply

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore"
)

func TestOutcomesAreAnswered(t *testing.T) {
	for _, c := range []struct {
		outcome kvstore.Outcome
		code    api.Code
	}{
		{kvstore.PreconditionFailed, api.PreconditionFailed}, {kvstore.TooLarge, api.TooLarge}, {kvstore.NoSpace, api.NoSpace},
		{kvstore.NotANumber, api.PreconditionFailed}, {kvstore.Overflow, api.PreconditionFailed},
		{kvstore.FutureRevision, api.FutureRevision}, {kvstore.Invalid, api.BadRequest},
		{kvstore.Compacted, api.RevisionCompacted}, {kvstore.KeyNotFound, api.KeyNotFound}, {kvstore.LeaseNotFound, api.LeaseNotFound},
		{kvstore.LeaseExists, api.LeaseExists}, {kvstore.LockHeld, api.LockHeld}, {kvstore.LockNotFound, api.LockNotFound},
		{kvstore.IdempotencyMismatch, api.IdempotencyMismatch}, {kvstore.DuplicateKey, api.BadRequest},
		{kvstore.PermissionDenied, api.PermissionDenied}, {kvstore.Busy, api.Overloaded}, {kvstore.Ignored, api.Internal}, {99, api.Internal},
	} {
		for _, detail := range []string{"", "told by the store"} {
			err := OutcomeProblem(&kvstore.Result{Outcome: c.outcome, Detail: detail, KV: kvstore.KV{ModRevision: 7}})
			var p *api.Error
			if !errors.As(err, &p) || p.Code != c.code || p.Detail == "" {
				t.Errorf("outcome %d: %v, want %s", c.outcome, err, c.code)
			}
			if p.Code == api.PreconditionFailed && p.Fields["revision"] != uint64(7) {
				t.Errorf("outcome %d: fields %v", c.outcome, p.Fields)
			}
		}
	}
	if err := OutcomeProblem(&kvstore.Result{}); err != nil {
		t.Errorf("OK gave %v", err)
	}
}

func TestErrorsWithoutACode(t *testing.T) {
	for _, c := range []struct {
		err  error
		code api.Code
	}{
		{context.DeadlineExceeded, api.ReadTimeout},
		{fmt.Errorf("get: %w", context.Canceled), api.ReadTimeout},
		{fmt.Errorf("get: %w", kvstore.ErrKeyNotFound), api.KeyNotFound},
		{fmt.Errorf("get: %w", &kvstore.CompactedError{CompactRevision: 4}), api.RevisionCompacted},
		{fmt.Errorf("get: %w", &kvstore.FutureRevisionError{Revision: 4}), api.FutureRevision},
		{errors.New("disk on fire: /secret/path"), api.Internal},
	} {
		p := Problem(c.err)
		if p.Code != c.code || strings.Contains(p.Detail, "secret") {
			t.Errorf("%v: got %+v, want %s", c.err, p, c.code)
		}
	}
}
