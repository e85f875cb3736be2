package io.tinymlaas.interop;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;

import org.eclipse.leshan.client.resource.BaseInstanceEnabler;
import org.eclipse.leshan.client.servers.LwM2mServer;
import org.eclipse.leshan.core.model.ObjectModel;
import org.eclipse.leshan.core.model.ResourceModel;
import org.eclipse.leshan.core.model.ResourceModel.Type;
import org.eclipse.leshan.core.node.LwM2mResource;
import org.eclipse.leshan.core.request.argument.Arguments;
import org.eclipse.leshan.core.response.ExecuteResponse;
import org.eclipse.leshan.core.response.ReadResponse;
import org.eclipse.leshan.core.response.WriteResponse;

/** An object instance whose resources are values in a map; a value that is a map makes a multiple resource. */
class FixedInstance extends BaseInstanceEnabler {
    protected final Map<Integer, Object> values = new ConcurrentHashMap<>();

    FixedInstance(Map<Integer, Object> values) {
        this.values.putAll(values);
    }

    /** Change a value and tell whoever observes it. */
    void set(int resource, Object value) {
        values.put(resource, value);
        fireResourceChange(resource);
    }

    @Override
    public List<Integer> getAvailableResourceIds(ObjectModel model) {
        List<Integer> found = new ArrayList<>(values.keySet());
        for (ResourceModel resource : model.resources.values()) {
            if (!resource.operations.isReadable() && !found.contains(resource.id)) {
                found.add(resource.id);
            }
        }
        return found;
    }

    @Override
    public ReadResponse read(LwM2mServer server, int resource) {
        Object value = values.get(resource);
        if (value == null) {
            return ReadResponse.notFound();
        }
        Type type = getModel().resources.get(resource).type;
        if (value instanceof Map) {
            @SuppressWarnings("unchecked")
            Map<Integer, ?> instances = (Map<Integer, ?>) value;
            return ReadResponse.success(resource, instances, type);
        }
        return switch (type) {
        case STRING -> ReadResponse.success(resource, (String) value);
        case INTEGER -> ReadResponse.success(resource, ((Number) value).longValue());
        case FLOAT -> ReadResponse.success(resource, ((Number) value).doubleValue());
        case BOOLEAN -> ReadResponse.success(resource, (Boolean) value);
        case OPAQUE -> ReadResponse.success(resource, (byte[]) value);
        default -> ReadResponse.internalServerError("no value of type " + type);
        };
    }

    @Override
    public WriteResponse write(LwM2mServer server, boolean replace, int resource, LwM2mResource value) {
        if (server.isSystem() || !getModel().resources.get(resource).operations.isWritable()) {
            return super.write(server, replace, resource, value);
        }
        values.put(resource, value.getValue());
        Wire.tell("written", "path", path(resource), "value", String.valueOf(value.getValue()));
        return WriteResponse.success();
    }

    @Override
    public ExecuteResponse execute(LwM2mServer server, int resource, Arguments arguments) {
        Wire.tell("executed", "path", path(resource));
        return ExecuteResponse.success();
    }

    protected String path(int resource) {
        return "/" + getModel().id + "/" + getId() + "/" + resource;
    }
}
