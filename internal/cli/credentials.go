package cli

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/term"
)

// credentials are those of the flags and variables. A client certificate and a Unix socket
// need none: the connection authenticates the user.
type credentials struct{ token, tokenFile, user string }

// credentialFlags are mutually exclusive. One on the command line overrides all their
// variables.
var credentialFlags = []string{"token", "token-file", "user"}

func (c *credentials) flags(f *pflag.FlagSet) {
	f.StringVar(&c.token, "token", "", "send this `TOKEN`; other users see it in the process list (KVD_TOKEN)")
	f.StringVar(&c.tokenFile, "token-file", "", "send the token in this `FILE` (KVD_TOKEN_FILE)")
	f.StringVar(&c.user, "user", "", "log in as `NAME[:PASSWORD]`; prompts for a missing password (KVD_USER)")
}

// check refuses credentials that contradict each other.
func (c *credentials) check() error {
	given := 0
	for _, text := range []string{c.token, c.tokenFile, c.user} {
		if text != "" {
			given++
		}
	}
	if given > 1 {
		return usagef("--token, --token-file, and --user (or KVD_TOKEN, KVD_TOKEN_FILE, and KVD_USER) exclude each other; give only one of them")
	}
	return nil
}

// Credentials are those of a command that makes its requests itself.
type Credentials struct{ who credentials }

// Flags adds the flags, whose variables FromEnvironment reads.
func (c *Credentials) Flags(f *pflag.FlagSet) { c.who.flags(f) }

// Header returns the header Authorization for requests to the endpoints, "" for none.
func (c *Credentials) Header(e *Environment, endpoints []string) (string, error) {
	if err := c.who.check(); err != nil {
		return "", err
	}
	token := c.who.token
	switch {
	case c.who.user != "":
		user, password, err := c.who.password(e)
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password)), err
	case c.who.tokenFile != "":
		var err error
		if token, err = e.ReadSecret(c.who.tokenFile); err != nil {
			return "", err
		}
	case token == "":
		logins, err := OpenLogins(e.Environ)
		if err != nil {
			return "", err
		}
		saved, ok := logins.Find(endpoints)
		if !ok {
			return "", nil
		}
		token = saved.Token
	}
	return "Bearer " + token, nil
}

// none reports whether there are no credentials.
func (c *credentials) none() bool { return *c == credentials{} }

// password splits --user, and asks for the password if it is missing.
func (c *credentials) password(e *Environment) (user, password string, err error) {
	user, password, given := strings.Cut(c.user, ":")
	if user == "" || given && password == "" {
		return "", "", usagef("--user is %q, but must be NAME or NAME:PASSWORD", c.user)
	}
	if !given {
		if password, err = e.AskSecret(fmt.Sprintf("Password of %s: ", user)); err == nil {
			c.user = user + ":" + password // prompt only once
		}
	}
	return user, password, err
}

// errNoTerminal is returned by AskSecret.
var errNoTerminal = errors.New("there is no terminal to prompt for the password on")

// AskSecret prompts on the terminal, without echo. If standard input is a file or a pipe,
// it uses the controlling terminal.
func (e *Environment) AskSecret(prompt string) (string, error) {
	f, ok := e.Stdin.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		if !ok {
			return "", UsageError{errNoTerminal} // a test, or a program that embeds the commands
		}
		tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
		if err != nil {
			return "", UsageError{errNoTerminal}
		}
		defer tty.Close()
		f = tty
	}
	fmt.Fprint(e.Stderr, prompt)
	b, err := term.ReadPassword(int(f.Fd()))
	fmt.Fprintln(e.Stderr)
	if err == nil && len(b) == 0 {
		err = usagef("the password is empty")
	}
	return string(b), err
}

// maxSecretBytes bounds a secret in a file. The longest is a JSON Web Token.
const maxSecretBytes = 8 << 10

// ReadSecret returns the first line of a file, or of standard input for -.
func (e *Environment) ReadSecret(file string) (string, error) {
	from := e.Stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", UsageError{err}
		}
		defer f.Close()
		from = f
	}
	text, err := io.ReadAll(io.LimitReader(from, maxSecretBytes+int64(len("\r\n"))))
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	switch line = strings.TrimSuffix(line, "\r"); {
	case line == "":
		return "", usagef("the first line of %s is empty; it must have the secret", file)
	case len(line) > maxSecretBytes:
		return "", usagef("the first line of %s is longer than %d bytes; it must have only the secret", file, maxSecretBytes)
	}
	return line, nil
}

// SavedLogin is an entry in the file of kvd login.
type SavedLogin struct {
	User    string    `json:"user"`
	ID      string    `json:"id"` // of the token
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
}

// Logins are the tokens that kvd login has stored, by endpoint: a token must not be sent to
// a node of another cluster.
type Logins struct {
	path string
	by   map[string]SavedLogin
}

// OpenLogins reads the file, which need not exist.
func OpenLogins(environ []string) (*Logins, error) {
	dir := variable(environ, "XDG_CONFIG_HOME")
	if home := variable(environ, "HOME"); dir == "" && home != "" {
		dir = filepath.Join(home, ".config")
	}
	l := &Logins{by: make(map[string]SavedLogin)}
	if dir == "" {
		return l, nil // a container without a home has no logins
	}
	l.path = filepath.Join(dir, "kvd", "logins.json")
	info, err := os.Stat(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s has tokens that others can read (mode %04o); remove it and log in again, or run: chmod 600 %s", l.path, info.Mode().Perm(), l.path)
	}
	text, err := os.ReadFile(l.path)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &l.by); err != nil {
		return nil, fmt.Errorf("%s: %w; remove it and log in again", l.path, err)
	}
	if l.by == nil { // the file has null
		l.by = make(map[string]SavedLogin)
	}
	return l, nil
}

// Find returns the login for the endpoints, if it is the same one for all of them.
func (l *Logins) Find(endpoints []string) (SavedLogin, bool) {
	var found SavedLogin
	for i, e := range endpoints {
		saved, ok := l.by[endpointName(e)]
		if !ok || i > 0 && saved.Token != found.Token {
			return SavedLogin{}, false
		}
		found = saved
	}
	return found, len(endpoints) > 0 && time.Now().Before(found.Expires)
}

func endpointName(e string) string { return strings.TrimSuffix(strings.ToLower(e), "/") }

// Set stores a login for the endpoints; nil removes it. It also removes expired logins.
func (l *Logins) Set(endpoints []string, login *SavedLogin) error {
	if l.path == "" {
		return errors.New("the login cannot be stored: neither XDG_CONFIG_HOME nor HOME is set")
	}
	for _, e := range endpoints {
		delete(l.by, endpointName(e))
		if login != nil {
			l.by[endpointName(e)] = *login
		}
	}
	for e, saved := range l.by {
		if !time.Now().Before(saved.Expires) {
			delete(l.by, e)
		}
	}
	return l.write()
}

// write replaces the file atomically, so that concurrent commands read a complete one.
func (l *Logins) write() error {
	text, err := json.MarshalIndent(l.by, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(l.path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(l.path), "logins-*") // only the user may read it
	if err != nil {
		return err
	}
	_, err = io.Copy(f, bytes.NewReader(append(text, '\n')))
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), l.path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
