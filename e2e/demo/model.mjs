// Schema, queries and mutators of the demo, shared by the browser and the API server.

import {
  boolean,
  createBuilder,
  createSchema,
  defineMutator,
  defineMutators,
  defineQueries,
  defineQuery,
  escapeLike,
  number,
  relationships,
  string,
  table,
} from '@rocicorp/zero';

const person = table('person').columns({id: string(), name: string(), handle: string(), hue: number()}).primaryKey('id');
const label = table('label').columns({id: string(), name: string(), color: string()}).primaryKey('id');
const issue = table('issue')
  .columns({
    id: string(),
    // Given by the database: a new issue has none until the server has confirmed it.
    number: number().optional(),
    title: string(),
    description: string(),
    open: boolean(),
    priority: number(),
    creatorID: string().from('creator_id'),
    assigneeID: string().from('assignee_id').optional(),
    created: number(),
    modified: number(),
  })
  .primaryKey('id');
const comment = table('comment')
  .columns({
    id: string(),
    issueID: string().from('issue_id'),
    authorID: string().from('author_id'),
    body: string(),
    created: number(),
  })
  .primaryKey('id');
const issueLabel = table('issueLabel')
  .from('issue_label')
  .columns({issueID: string().from('issue_id'), labelID: string().from('label_id')})
  .primaryKey('issueID', 'labelID');

export const schema = createSchema({
  tables: [person, label, issue, comment, issueLabel],
  relationships: [
    relationships(issue, ({one, many}) => ({
      creator: one({sourceField: ['creatorID'], destField: ['id'], destSchema: person}),
      assignee: one({sourceField: ['assigneeID'], destField: ['id'], destSchema: person}),
      comments: many({sourceField: ['id'], destField: ['issueID'], destSchema: comment}),
      labels: many(
        {sourceField: ['id'], destField: ['issueID'], destSchema: issueLabel},
        {sourceField: ['labelID'], destField: ['id'], destSchema: label},
      ),
    })),
    relationships(comment, ({one}) => ({
      author: one({sourceField: ['authorID'], destField: ['id'], destSchema: person}),
    })),
  ],
});

const zql = createBuilder(schema);

export const queries = defineQueries({
  people: defineQuery(() => zql.person.orderBy('name', 'asc')),
  labels: defineQuery(() => zql.label.orderBy('name', 'asc')),
  issues: defineQuery(({args: {status, label, assignee, text, sort, limit}}) => {
    let q = zql.issue;
    if (status !== 'all') q = q.where('open', status === 'open');
    if (assignee === 'nobody') q = q.where('assigneeID', 'IS', null);
    else if (assignee) q = q.where('assigneeID', assignee);
    if (label) q = q.whereExists('labels', l => l.where('id', label));
    if (text) {
      const pattern = `%${escapeLike(text)}%`;
      q = q.where(({or, cmp}) => or(cmp('title', 'ILIKE', pattern), cmp('description', 'ILIKE', pattern)));
    }
    if (sort === 'priority') q = q.orderBy('priority', 'desc');
    return q
      .orderBy(sort === 'created' ? 'created' : 'modified', 'desc')
      .related('labels')
      .related('assignee')
      .limit(limit);
  }),
  issue: defineQuery(({args: {id}}) =>
    zql.issue
      .where('id', id)
      .related('creator')
      .related('assignee')
      .related('labels')
      .related('comments', c => c.orderBy('created', 'asc').related('author'))
      .one(),
  ),
});

function checkText(what, text, max) {
  if (typeof text !== 'string' || text.trim() === '') throw new Error(`${what} must not be empty`);
  if (text.length > max) throw new Error(`${what} must not be longer than ${max} characters`);
}

/** Whoever is signed in acts; the API server knows them from the connection's token. */
function actor(ctx) {
  if (!ctx?.userID) throw new Error('sign in first');
  return ctx.userID;
}

export const mutators = defineMutators({
  issue: {
    create: defineMutator(async ({tx, args: {id, title, description, now}, ctx}) => {
      checkText('The title', title, 200);
      await tx.mutate.issue.insert({
        id,
        title: title.trim(),
        description: description ?? '',
        open: true,
        priority: 1,
        creatorID: actor(ctx),
        created: now,
        modified: now,
      });
    }),
    update: defineMutator(async ({tx, args: {id, now, ...changes}, ctx}) => {
      actor(ctx);
      if (changes.title !== undefined) checkText('The title', changes.title, 200);
      const allowed = ['title', 'description', 'open', 'priority', 'assigneeID'];
      const set = Object.fromEntries(allowed.filter(name => changes[name] !== undefined).map(name => [name, changes[name]]));
      await tx.mutate.issue.update({id, modified: now, ...set});
    }),
    setLabel: defineMutator(async ({tx, args: {id, labelID, on, now}, ctx}) => {
      actor(ctx);
      if (on) await tx.mutate.issueLabel.upsert({issueID: id, labelID});
      else await tx.mutate.issueLabel.delete({issueID: id, labelID});
      await tx.mutate.issue.update({id, modified: now});
    }),
  },
  comment: {
    create: defineMutator(async ({tx, args: {id, issueID, body, now}, ctx}) => {
      checkText('The comment', body, 10_000);
      await tx.mutate.comment.insert({id, issueID, body: body.trim(), authorID: actor(ctx), created: now});
      await tx.mutate.issue.update({id: issueID, modified: now});
    }),
  },
});
