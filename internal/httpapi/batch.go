package httpapi

import (
	"net/http"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/httpapi/batch"
	"github.com/kvd-io/kvd/internal/httpapi/param"
)

// streamOps answers POST /v1/batch.
func streamOps(s *Server, x *exchange) error {
	if err := wholeBody(x.r.Header); err != nil {
		return err
	}
	if err := param.RefuseConditions(x.r.Header, "an operation has its own in \"if_revision\""); err != nil {
		return err
	}
	timeout, err := x.query.Timeout()
	if err != nil {
		return err
	}
	if pretty, _ := x.query.Flag("pretty"); pretty {
		return badRequest("the answers are one line each and cannot be indented; omit \"pretty\"")
	}
	if err := x.held.memory.Wait(x.r.Context(), batch.Bytes); err != nil {
		return err
	}
	// The memory bounds how many streams there are, and Turns how many work at once.
	x.held.leave()
	x.Header()["X-Content-Type-Options"] = nosniff
	x.set("Content-Type", ndjsonType)
	x.setCluster()
	if x.timing != nil {
		x.set("Trailer", "Server-Timing")
	}
	stream := &batch.Stream{
		W: x, R: x.r, Store: s.opts.Store, Replicator: s.opts.Replicator, Turns: s.turns, Memory: s.opts.Memory, Claim: &x.held.memory, Timeout: timeout, Grace: drainGrace,
		Admit: x.visit.Line, Note: x.timing.noteStage(), Log: s.log, LimitWrite: x.limitWriteTime, Rejected: s.rejected, Failed: func(err error) string { return lineFailed(x, err) },
	}
	x.body = bodyBroken
	readAll, err := stream.Run()
	if readAll {
		x.body = bodyRead
	}
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	x.setTiming() // as a trailer
	return nil
}

// rejected tells the Observer about an error that is answered.
func (s *Server) rejected(code api.Code) {
	if o := s.opts.Observer; o != nil {
		o.Rejected(code)
	}
}

// lineFailed is batch.Stream.Failed.
func lineFailed(x *exchange, err error) string {
	if err != nil {
		x.srv.log.Error("batch failed", x.logFields(err)...)
	}
	return x.requestID()
}
