package httpapi

import (
	"net/http"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/httpapi/accounts"
	"github.com/kvd-io/kvd/internal/httpapi/door"
	"github.com/kvd-io/kvd/internal/httpapi/param"
	"github.com/kvd-io/kvd/internal/kvstore"
)

// accountRoutes returns the routes of rights. They judge their callers themselves.
func accountRoutes() (out []*route) {
	for _, r := range accounts.Routes() {
		rt := &route{pattern: r.Pattern}
		for _, m := range r.Methods {
			who := door.ByHandler
			if m.Open {
				who = door.ForAll
			}
			rt.methods = append(rt.methods, method{name: m.Name, who: who, handle: answerAccounts(m), params: m.Params, body: m.MaxBody > 0, mutates: m.Mutates, once: m.Mutates && m.Instead == "", instead: m.Instead})
		}
		out = append(out, rt)
	}
	return out
}

// answerAccounts makes a handler of a method of package accounts.
func answerAccounts(m accounts.Method) handler {
	return func(s *Server, x *exchange) error {
		conds, err := param.HeaderConditions(x.r.Header)
		if err != nil {
			return err
		}
		body, err := x.readBody(m.MaxBody, "")
		if err != nil {
			return err
		}
		ctx, cancel, err := x.context()
		if err != nil {
			return err
		}
		defer cancel()
		a, err := m.Handle(&accounts.Request{
			Context: ctx, Name: x.arg, Query: &x.query, Body: body, Conditions: conds,
			Caller: &x.visit.Caller, Gate: s.opts.Gate, Memory: &x.held.memory,
			Fresh: func() error { return x.freshen(0) },
			Do: func(cmd *kvstore.Command) (kvstore.Result, error) {
				cmd.Origin.RequestID, cmd.Origin.Client = x.requestID(), x.r.RemoteAddr
				return x.do(cmd)
			},
		})
		_ = x.visit.Settle(nil) // it has judged
		if err != nil {
			return err
		}
		return writeAccounts(x, a, conds, m.Mutates)
	}
}

// writeAccounts writes an answer. The conditions of a change were judged with it.
func writeAccounts(x *exchange, a *accounts.Answer, conds []kvstore.Condition, changed bool) error {
	if a.Revision != 0 {
		x.set("Etag", param.ETag(a.Revision))
	}
	if a.Location != "" {
		x.Header()["Location"] = []string{a.Location}
	}
	if a.Secret {
		x.Header()["Cache-Control"] = []string{"no-store"}
	}
	if !changed {
		switch judgeRead(conds, a.Revision) {
		case http.StatusPreconditionFailed:
			return api.Errorf(api.PreconditionFailed, "a condition of the request failed: the rights have the entity tag %s", param.ETag(a.Revision))
		case http.StatusNotModified:
			x.WriteHeader(http.StatusNotModified)
			return nil
		}
	}
	x.writeDocument(jsonType, a.Status, a.Document)
	return nil
}
