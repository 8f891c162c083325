package httpapi

import (
	"context"
	_ "embed"
	"fmt"
	"net/http"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/httpapi/param"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/opjson"
	"github.com/kvd-io/kvd/internal/pace"
)

// openAPI describes exactly the routes of routeTable; a test compares them.
//
//go:embed openapi.yaml
var openAPI []byte

// compacted is the answer to POST /v1/compact.
type compacted struct {
	Revision        uint64 `json:"revision"`
	CompactRevision uint64 `json:"compact_revision"`
}

// compact answers POST /v1/compact?revision=R.
func (s *Server) compact(x *exchange) error {
	revision, ok, err := x.query.Number("revision", 1)
	if err != nil {
		return err
	}
	if !ok {
		return badRequest("the parameter \"revision\" is missing; it is the oldest revision that remains readable")
	}
	res, err := x.do(&kvstore.Command{Op: kvstore.OpCompact, Revision: revision})
	// A repeat of the request asks for what is already so.
	if err != nil && res.Outcome != kvstore.Compacted {
		return err
	}
	return x.writeJSON(http.StatusOK, compacted{res.Revision, res.CompactRevision})
}

// getSettings answers GET and HEAD of /v1/settings.
func (s *Server) getSettings(x *exchange) error {
	conds, err := param.HeaderConditions(x.r.Header)
	if err != nil {
		return err
	}
	if err := x.freshen(0); err != nil {
		return err
	}
	settings := s.opts.Store.Settings()
	if err := x.visit.Again(); err != nil {
		return err
	}
	x.setRevision(s.opts.Store.Revision())
	x.set("Etag", param.ETag(settings.Tag()))
	switch judgeRead(conds, settings.Tag()) {
	case http.StatusPreconditionFailed:
		return settingsChanged(settings.Tag())
	case http.StatusNotModified:
		x.WriteHeader(http.StatusNotModified)
		return nil
	}
	return x.writeJSON(http.StatusOK, settings)
}

// settingsChanged is the 412 for settings that have the tag now.
func settingsChanged(tag uint64) *api.Error {
	p := api.Errorf(api.PreconditionFailed, "a condition of the request failed: the settings have the entity tag %s; read them again (GET /v1/settings) before you change them", param.ETag(tag))
	p.Fields = map[string]any{"etag": param.ETag(tag)}
	return p
}

// changeSettings answers PUT and PATCH of /v1/settings. The command has only the
// fields that are given, and every replica merges them when it applies the command:
// merged here, two changes at the same time would undo each other.
func (s *Server) changeSettings(x *exchange) error {
	conds, err := param.HeaderConditions(x.r.Header)
	if err != nil {
		return err
	}
	body, err := x.readBody(maxDocument, "")
	if err != nil {
		return err
	}
	change := new(kvstore.SettingsChange)
	if err := opjson.Decode(body, change); err != nil {
		return err
	}
	if err := change.Validate(); err != nil {
		return badRequest("%v", err)
	}
	origin := kvstore.Origin{RequestID: x.requestID(), Client: x.r.RemoteAddr}
	res, err := x.do(&kvstore.Command{Op: kvstore.OpSettings, Settings: change, Conditions: conds, Origin: origin})
	switch {
	case res.Outcome == kvstore.PreconditionFailed:
		return settingsChanged(res.KV.ModRevision)
	case err != nil:
		return err
	}
	x.set("Etag", param.ETag(res.Settings.Tag()))
	return x.writeJSON(http.StatusOK, res.Settings)
}

// getSnapshot streams a backup. What comes before the stream is a read like any other:
// linearizable within the default timeout or, with consistency=stale, of this node's own
// state, which needs no quorum. How long the stream takes depends on the size of the
// store, so it has a timeout only if the request has one. A client that accepts no data is
// disconnected.
func (s *Server) getSnapshot(x *exchange) error {
	if err := enterSnapshot(s.snapshots); err != nil {
		return err
	}
	defer s.snapshots.Leave()
	if err := x.freshen(0); err != nil {
		return err
	}
	ctx, cancel, err := longContext(x)
	if err != nil {
		return err
	}
	defer cancel()
	out := &snapshotWriter{x: x, start: time.Now()}
	if x.r.Method == http.MethodHead {
		return out.begin() // without producing a snapshot for nobody
	}
	if err := s.opts.Inspector.Snapshot(ctx, out); err != nil {
		return fmt.Errorf("stream snapshot: %w", err)
	}
	if !out.begun {
		return api.Errorf(api.Internal, "the snapshot is empty")
	}
	return nil
}

// longContext is context for a request that may take any time by default.
func longContext(x *exchange) (context.Context, context.CancelFunc, error) {
	if x.query.Has("timeout") {
		return x.context()
	}
	ctx, cancel := context.WithCancel(x.r.Context())
	return ctx, cancel, nil
}

// snapshotWriter sends the header with the first byte, so that a snapshot that fails
// before it is answered with an error. A client must reach pace's average rate after
// writeGrace: one that reads a little now and then would keep one of few places, and an
// old state on disk, for days.
type snapshotWriter struct {
	x     *exchange
	start time.Time
	begun bool
}

func (w *snapshotWriter) Write(p []byte) (int, error) {
	if !w.begun {
		if err := w.begin(); err != nil {
			return 0, err
		}
	}
	at := time.Now().Add(writeGrace)
	if end := w.start.Add(writeGrace + pace.TransferTime(w.x.out+int64(len(p)))); end.Before(at) {
		at = end
	}
	_ = http.NewResponseController(w.x.w).SetWriteDeadline(at)
	return w.x.Write(p)
}

// begin sends the header, if the caller may still have what was read.
func (w *snapshotWriter) begin() error {
	if err := w.x.visit.Again(); err != nil {
		return err
	}
	w.begun = true
	w.x.held.leave()
	h := w.x.Header()
	h["Content-Type"] = octetStream
	h["X-Content-Type-Options"] = nosniff
	h["Content-Disposition"] = []string{`attachment; filename="kvd.snapshot"`}
	w.x.setCluster()
	w.x.WriteHeader(http.StatusOK)
	return nil
}

func (s *Server) getVersion(x *exchange) error {
	return x.writeJSON(http.StatusOK, s.opts.Version)
}

func (s *Server) getOpenAPI(x *exchange) error {
	x.set("Content-Type", "application/yaml")
	x.Header()["X-Content-Type-Options"] = nosniff
	x.writeWhole(http.StatusOK, openAPI)
	return nil
}

// getMetrics passes the request to the handler of metrics.
func (s *Server) getMetrics(x *exchange) error {
	if s.opts.Metrics == nil {
		return api.Errorf(api.NotFound, "metrics are not served on this listener")
	}
	s.opts.Metrics.ServeHTTP(x, x.r)
	return nil
}
