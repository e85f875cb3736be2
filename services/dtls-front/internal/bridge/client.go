// Package bridge is the front's side of tinymlaas.bridge.v1.SecureSessions.
package bridge

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"tinymlaas/dtls-front/gen/bridgev1"
)

// ErrRefused says that the bridge does not take a session.
var ErrRefused = errors.New("the bridge refused the session")

// ErrUnknownIdentity says that the bridge has no key for an identity.
var ErrUnknownIdentity = errors.New("unknown PSK identity")

// Session is what the bridge is told of one DTLS session.
type Session struct {
	ID           string
	Identity     []byte
	RelayAddress string
	PeerAddress  string
	// Close ends the session; called when the bridge wants that.
	Close func()
}

type entry struct {
	session Session
	// Receives the bridge's answer once; nil after it was given.
	answered chan bool
}

// Client keeps one Relay stream to the bridge, and tells of all open sessions again whenever the stream had to be made anew.
type Client struct {
	rpc   bridgev1.SecureSessionsClient
	token string
	// Longest pause between two tries to reach the bridge.
	retry time.Duration

	mutex    sync.Mutex
	sessions map[string]*entry
	outgoing chan *bridgev1.RelayRequest
}

// NewClient makes a client over a connection; `token` is sent as bearer token where it is not empty.
func NewClient(connection grpc.ClientConnInterface, token string) *Client {
	return &Client{
		rpc:      bridgev1.NewSecureSessionsClient(connection),
		token:    token,
		retry:    time.Second,
		sessions: map[string]*entry{},
		outgoing: make(chan *bridgev1.RelayRequest, 1024),
	}
}

func (c *Client) authorized(ctx context.Context) context.Context {
	if c.token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+c.token)
}

// ResolveKey asks for the key of an identity, and waits for a bridge that is away. ErrUnknownIdentity where there is none.
func (c *Client) ResolveKey(ctx context.Context, identity []byte) ([]byte, error) {
	request := &bridgev1.ResolveKeyRequest{Identity: identity}
	answer, err := c.rpc.ResolveKey(c.authorized(ctx), request, grpc.WaitForReady(true))
	if status.Code(err) == codes.NotFound {
		return nil, ErrUnknownIdentity
	}
	if err != nil {
		return nil, err
	}
	return answer.GetSecret(), nil
}

// Open tells the bridge of a session and waits for its answer. ErrRefused where the bridge does not take it.
func (c *Client) Open(ctx context.Context, session Session) error {
	answered := make(chan bool, 1)
	c.mutex.Lock()
	c.sessions[session.ID] = &entry{session, answered}
	c.mutex.Unlock()
	c.send(opened(session))
	select {
	case accepted := <-answered:
		if accepted {
			return nil
		}
		c.forget(session.ID)
		return ErrRefused
	case <-ctx.Done():
		c.Closed(session.ID)
		return ctx.Err()
	}
}

// Closed tells the bridge that a session has ended. Repeatable.
func (c *Client) Closed(id string) {
	if c.forget(id) {
		c.send(&bridgev1.RelayRequest{Event: &bridgev1.RelayRequest_Closed{Closed: &bridgev1.SessionClosed{SessionId: id}}})
	}
}

func (c *Client) forget(id string) bool {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	_, known := c.sessions[id]
	delete(c.sessions, id)
	return known
}

// send queues an event; a full queue means that the bridge is away, and Run tells of everything when it is back.
func (c *Client) send(request *bridgev1.RelayRequest) {
	select {
	case c.outgoing <- request:
	default:
	}
}

// Run keeps the stream until the context ends.
func (c *Client) Run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := c.relay(ctx); err != nil && ctx.Err() == nil {
			slog.Warn("the bridge is away; trying again", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(c.retry):
		}
	}
}

func (c *Client) relay(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.rpc.Relay(c.authorized(ctx), grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() { failed <- c.receive(stream) }()
	for _, session := range c.drain() {
		if err := stream.Send(opened(session)); err != nil {
			return <-failed
		}
	}
	for {
		select {
		case err := <-failed:
			return err
		case request := <-c.outgoing:
			if err := stream.Send(request); err != nil {
				return <-failed
			}
		}
	}
}

// drain empties the queue, whose events a new stream does not need, and returns all open sessions.
func (c *Client) drain() []Session {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for len(c.outgoing) > 0 {
		<-c.outgoing
	}
	sessions := make([]Session, 0, len(c.sessions))
	for _, known := range c.sessions {
		sessions = append(sessions, known.session)
	}
	return sessions
}

func (c *Client) receive(stream grpc.BidiStreamingClient[bridgev1.RelayRequest, bridgev1.RelayResponse]) error {
	for {
		answer, err := stream.Recv()
		if err != nil {
			return err
		}
		c.mutex.Lock()
		known, ok := c.sessions[answer.GetSessionId()]
		var answered chan bool
		if ok {
			answered, known.answered = known.answered, nil
		}
		c.mutex.Unlock()
		switch {
		case !ok:
		case answered != nil:
			answered <- answer.GetAccepted() && !answer.GetClose()
		case !answer.GetAccepted() || answer.GetClose():
			// A session that was open when the bridge came back, or whose key was taken away.
			go known.session.Close()
		}
	}
}

func opened(session Session) *bridgev1.RelayRequest {
	return &bridgev1.RelayRequest{Event: &bridgev1.RelayRequest_Opened{Opened: &bridgev1.SessionOpened{
		SessionId:    session.ID,
		Identity:     session.Identity,
		RelayAddress: session.RelayAddress,
		PeerAddress:  session.PeerAddress,
	}}}
}
