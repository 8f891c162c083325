package httpapi

import (
	"context"
	"time"

	"github.com/kvd-io/kvd/internal/api"
)

// context returns the request's context with its timeout, which begins with the first
// call: the time that the client takes to send the body does not count.
func (x *exchange) context() (context.Context, context.CancelFunc, error) {
	if err := x.startTimeout(); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithDeadline(x.r.Context(), x.deadline)
	return ctx, cancel, nil
}

// signedContext is context for a change that every member logs, with the request
// that asked for it and its idempotency key.
func (x *exchange) signedContext() (context.Context, context.CancelFunc, error) {
	ctx, cancel, err := x.context()
	if err != nil {
		return nil, nil, err
	}
	if change := x.once.change(x); change != nil {
		ctx = api.WithOnce(ctx, change)
	}
	return api.WithRequester(ctx, api.Requester{RequestID: x.requestID(), Client: x.r.RemoteAddr, Principal: x.visit.Caller.User}), cancel, nil
}

// startTimeout sets the deadline of the request, unless it is set.
func (x *exchange) startTimeout() error {
	if !x.deadline.IsZero() {
		return nil
	}
	d, err := x.query.Timeout()
	x.deadline = time.Now().Add(d)
	return err
}

// briefContext is context for a callee that does not keep the context when it
// returns. It costs no allocation if the client is not being watched.
func (x *exchange) briefContext() (context.Context, context.CancelFunc, error) {
	// A deadline does not watch its parent. net/http cancels the request's context
	// when the client disconnects; package http1 does not watch the client unless asked (attended).
	if x.r.Context().Done() != nil {
		return x.context()
	}
	if err := x.startTimeout(); err != nil {
		return nil, nil, err
	}
	ctx, release := x.srv.deadlines.Get(x.r.Context(), x.deadline)
	return ctx, release, nil
}

// attended returns the request's context, which ends if the client disconnects, for a
// handler that waits. It must call leave before it returns.
func attended(x *exchange) (_ context.Context, leave func()) {
	ctx, cancel := context.WithCancel(x.r.Context())
	// net/http cancels the request's context by itself.
	if w, ok := x.w.(interface {
		Attend(gone func()) (leave func())
	}); ok {
		stop := w.Attend(cancel)
		return ctx, func() { stop(); cancel() }
	}
	return ctx, cancel
}
