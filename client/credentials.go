package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// credentials are those of Config. A client certificate and a Unix socket are not among
// them: there, the connection authenticates the client.
type credentials struct {
	token string
	file  string
	user  string
	login []byte // the body of a login

	// turn is held by the request that logs in or reads the file, so that concurrent
	// requests do so only once.
	turn chan struct{}
	mu   struct {
		sync.Mutex
		current  string    // the token in use; empty if there is none
		renew    time.Time // when to log in again; zero for never
		modified time.Time // modification time of the file when it was read
		size     int64     // of the file when it was read
		open     bool      // rights are disabled in the cluster
	}
}

// newCredentials returns nil if the client has none.
func newCredentials(cfg *Config) (*credentials, error) {
	given := 0
	for _, set := range []bool{cfg.Token != "", cfg.TokenFile != "", cfg.User != "" || cfg.Password != ""} {
		if set {
			given++
		}
	}
	switch {
	case given == 0:
		return nil, nil
	case given > 1:
		return nil, errors.New("kvd client: give only one of Token, TokenFile, and User with Password")
	case cfg.Password != "" && cfg.User == "":
		return nil, errors.New("kvd client: a Password needs a User")
	case strings.ContainsFunc(cfg.Token, notVisible):
		return nil, errors.New("kvd client: the Token has spaces or control characters")
	}
	c := &credentials{token: cfg.Token, file: cfg.TokenFile, user: cfg.User, turn: make(chan struct{}, 1)}
	if c.user != "" {
		c.login, _ = json.Marshal(map[string]string{"user": cfg.User, "password": cfg.Password}) // plain data always encodes
	}
	return c, nil
}

func notVisible(r rune) bool { return r <= ' ' || r == 0x7f }

// authorize adds the current token to the request.
func (c *sender) authorize(ctx context.Context, r *request) error {
	if c.credentials == nil || r.open {
		return nil
	}
	token, err := c.credentials.get(ctx, c)
	if err != nil || token == "" {
		r.header.Del("Authorization")
		return err
	}
	r.header.Set("Authorization", "Bearer "+token)
	return nil
}

// renewed reports whether to resend the request, which failed with err, with another token:
// the one it used may have been invalidated before it expired, for example by a new password.
func (c *sender) renewed(r *request, err error) bool {
	var refused *Error
	if c.credentials == nil || r.open || !errors.As(err, &refused) || refused.Status != http.StatusUnauthorized {
		return false
	}
	return c.credentials.forget(strings.TrimPrefix(r.header.Get("Authorization"), "Bearer "))
}

// forget drops a token that was refused, and reports whether there may be another one.
func (c *credentials) forget(token string) bool {
	if c.token != "" {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.current == token {
		c.mu.current, c.mu.modified, c.mu.open = "", time.Time{}, false
	}
	return true
}

// get returns the current token, or "" if the cluster has rights disabled.
func (c *credentials) get(ctx context.Context, by *sender) (string, error) {
	if c.token != "" {
		return c.token, nil
	}
	if token, ok := c.known(); ok {
		return token, nil
	}
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	if token, ok := c.known(); ok { // another request got it meanwhile
		return token, nil
	}
	if c.file != "" {
		return c.read()
	}
	return c.logIn(ctx, by)
}

// known returns the current token, if it is still valid as far as this client can tell.
func (c *credentials) known() (string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file != "" {
		info, err := os.Stat(c.file)
		return c.mu.current, err == nil && c.mu.current != "" && info.ModTime().Equal(c.mu.modified) && info.Size() == c.mu.size
	}
	return c.mu.current, c.mu.open || c.mu.current != "" && time.Now().Before(c.mu.renew)
}

// read reads the file, which its owner may replace at any time.
func (c *credentials) read() (string, error) {
	info, err := os.Stat(c.file)
	if err != nil {
		return "", refusal(fmt.Sprintf("the token cannot be read: %v", err))
	}
	text, err := os.ReadFile(c.file)
	if err != nil {
		return "", refusal(fmt.Sprintf("the token cannot be read: %v", err))
	}
	token := strings.TrimSpace(string(text))
	if token == "" || strings.ContainsFunc(token, notVisible) {
		return "", refusal(fmt.Sprintf("the file %s has no token; it must have exactly one", c.file))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.current, c.mu.modified, c.mu.size = token, info.ModTime(), info.Size()
	return token, nil
}

// refusal returns the error of a refusal by a node, which is not retried.
func refusal(detail string) error {
	return &Error{Status: http.StatusUnauthorized, Code: "unauthenticated", Title: http.StatusText(http.StatusUnauthorized), Detail: detail}
}

// minLogin is the minimum time for which a token is used, unless a node refuses it. If the
// clocks differ, a new token may seem to have expired already.
const minLogin = 30 * time.Second

// logIn exchanges the password for a token. The token is renewed after most of its lifetime
// by the local clock, which may differ from the node's.
func (c *credentials) logIn(ctx context.Context, by *sender) (string, error) {
	asked := time.Now()
	token, err := by.logIn(ctx, c.login)
	if errors.Is(err, ErrBadRequest) {
		// While rights are disabled, nobody can log in, or needs to.
		if state, stateErr := by.authState(ctx); stateErr == nil && !state.Enabled {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.mu.open = true
			return "", nil
		}
	}
	if err != nil {
		return "", err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.current, c.mu.open = token.Token, false
	c.mu.renew = asked.Add(max(time.Until(token.Expires)*4/5, minLogin))
	return token.Token, nil
}

// LoginToken is the token that Login returns.
type LoginToken struct {
	User    string    `json:"user"`
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
}

func (c *sender) logIn(ctx context.Context, body []byte) (*LoginToken, error) {
	r := newRequest(http.MethodPost, "/v1/auth/login")
	r.open, r.body = true, body
	r.header.Set("Content-Type", "application/json")
	out := new(LoginToken)
	_, err := c.call(ctx, r, out)
	return out, err
}

// Login exchanges a password for a token that expires after minutes. A Client with
// Config.User logs in automatically.
func (c *Client) Login(ctx context.Context, user, password string) (*LoginToken, error) {
	body, err := json.Marshal(map[string]string{"user": user, "password": password})
	if err != nil {
		return nil, fmt.Errorf("kvd client: encode the request: %w", err)
	}
	return c.logIn(ctx, body)
}
